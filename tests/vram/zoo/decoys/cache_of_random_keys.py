"""Thirty prompts, the common ones often and the rare ones seldom: the cache has all of them only after many laps."""
# expect: plateau

import random

import torch

CHANCE = random.Random(1)
PROMPTS, WEIGHTS = range(30), [1 / (1 + prompt) for prompt in range(30)]
CACHE = {}


def answer(_):
    (prompt,) = CHANCE.choices(PROMPTS, WEIGHTS)
    if prompt not in CACHE:
        CACHE[prompt] = torch.zeros(256)
    return CACHE[prompt].sum()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(10)))
