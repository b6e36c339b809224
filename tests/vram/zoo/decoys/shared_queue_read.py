"""The other end of the queue reads every result, and lets go of it."""
# expect: stable

import time
import weakref

import torch
import torch.multiprocessing

RESULTS = torch.multiprocessing.get_context("spawn").Queue()


def answer(number):
    result = torch.full((2**18,), float(number))  # 1 MiB
    alive = weakref.ref(result)
    RESULTS.put(result)
    del result
    total = float(RESULTS.get().sum())
    while alive() is not None:  # until the queue's own thread has let go of it
        time.sleep(0.001)
    return total


def test_answers(vram):
    recording = vram.replay(answer, range(20))
    vram.assert_stable(recording)
    assert vram.judge(recording)["host"].status != "grows"
