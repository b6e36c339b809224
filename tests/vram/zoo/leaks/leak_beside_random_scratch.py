"""Beside scratch for lengths that are drawn anew in every lap, a small result of each sample is kept."""
# expect: grows
# holder: list `KEPT` (* items), global of module test_leak_beside_random_scratch
# says: *the step differs from lap to lap: seed it, or declare a bounded cache*

import random

import torch

CHANCE = random.Random(3)
SCRATCH = torch.empty(0)
KEPT = []


def answer(_):
    length = CHANCE.randrange(100, 4000)
    if SCRATCH.numel() < length:
        SCRATCH.resize_(length)
    hidden = SCRATCH[:length].fill_(1) * 2
    KEPT.append(torch.zeros(64))  # here
    return hidden.sum()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(10)))
