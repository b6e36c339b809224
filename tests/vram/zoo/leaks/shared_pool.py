"""Results of a pool of threads that lives as long as the module are kept."""
# expect: grows
# holder: list `KEPT` (* items), global of module test_shared_pool

from concurrent.futures import ThreadPoolExecutor

import torch

POOL = ThreadPoolExecutor(max_workers=1)
KEPT = []


def encode(length):
    return torch.zeros(length, 8)  # here


def answer(length):
    KEPT.append(POOL.submit(encode, length).result())
    return float(KEPT[-1].sum())


def test_answers(vram):
    try:
        vram.assert_stable(vram.replay(answer, range(1, 21)))
    finally:
        POOL.shutdown()
