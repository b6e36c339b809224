"""A cache of randomly drawn keys: the fuller it is, the more rarely it grows; no reading shows that it stops."""
# expect: undecided

import random

import torch

CACHE = {}
CHANCE = random.Random(0)


def answer(_):
    for _ in range(8):
        token = CHANCE.randrange(400)
        if token not in CACHE:
            CACHE[token] = torch.zeros(8)  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(20)))
