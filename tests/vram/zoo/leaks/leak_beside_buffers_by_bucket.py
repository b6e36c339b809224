"""Beside buffers by bucket, which random lengths still add to in later laps, every sample leaves its mask."""
# expect: grows
# holder: list `MASKS` (* items), global of module test_leak_beside_buffers_by_bucket

import random

import torch

CHANCE = random.Random(5)
BUFFERS, MASKS = {}, []


def answer(_):
    bucket = CHANCE.randrange(1, 2048) // 64 + 1
    if bucket not in BUFFERS:
        BUFFERS[bucket] = torch.empty(64 * bucket)
    MASKS.append(torch.ones(512))  # here
    return BUFFERS[bucket].fill_(1).sum()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(10)))
