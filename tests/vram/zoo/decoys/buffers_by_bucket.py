"""A buffer for each multiple of 64 that a random length is rounded up to: the last ones are asked for late."""
# expect: plateau

import random

import torch

CHANCE = random.Random(5)
BUFFERS = {}


def answer(_):
    bucket = CHANCE.randrange(1, 2048) // 64 + 1
    if bucket not in BUFFERS:
        BUFFERS[bucket] = torch.empty(64 * bucket)
    return BUFFERS[bucket].fill_(1).sum()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(10)))
