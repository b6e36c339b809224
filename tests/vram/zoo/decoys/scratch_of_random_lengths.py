"""Lengths are drawn anew in every lap, and a scratch buffer is as large as the longest so far."""
# expect: plateau

import random

import torch

CHANCE = random.Random(3)
SCRATCH = torch.empty(0)


def answer(_):
    length = CHANCE.randrange(100, 4000)
    if SCRATCH.numel() < length:
        SCRATCH.resize_(length)
    return SCRATCH[:length].fill_(1).sum()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(10)))
