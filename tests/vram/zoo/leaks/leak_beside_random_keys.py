"""Beside a cache that common prompts fill at once and rare ones late, every sample leaves its mask."""
# expect: grows
# holder: list `MASKS` (* items), global of module test_leak_beside_random_keys

import random

import torch

CHANCE = random.Random(1)
PROMPTS, WEIGHTS = range(30), [1 / (1 + prompt) for prompt in range(30)]
CACHE, MASKS = {}, []


def answer(_):
    (prompt,) = CHANCE.choices(PROMPTS, WEIGHTS)
    if prompt not in CACHE:
        CACHE[prompt] = torch.zeros(256)
    MASKS.append(torch.ones(512))  # here
    return CACHE[prompt].sum()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(10)))
