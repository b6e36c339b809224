"""The other end of the queue reads every result, and lets go of it."""
# expect: stable
# host: stable

import torch
import torch.multiprocessing

RESULTS = torch.multiprocessing.get_context("spawn").Queue()


def answer(number):
    RESULTS.put(torch.full((2**18,), float(number)))  # 1 MiB
    return float(RESULTS.get().sum())


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(20)))
