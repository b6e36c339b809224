"""Futures stay in a list after their results were used; each keeps its result."""
# expect: grows
# holder: attribute `_result` of Future in list `FUTURES` (* items), global of module test_kept_futures

from concurrent.futures import ThreadPoolExecutor

import torch

FUTURES = []


def encode(length):
    return torch.zeros(length, 8)  # here


def answer(length):
    with ThreadPoolExecutor(max_workers=1) as pool:
        FUTURES.append(pool.submit(encode, length))
    return float(FUTURES[-1].result().sum())


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
