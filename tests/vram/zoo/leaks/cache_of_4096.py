"""A cache has room for 4096 prompts, and each prompt is different: it will be full one day, not today."""
# expect: grows
# holder: result of lru_cache of encode, global of module test_cache_of_4096

import itertools
from functools import lru_cache

import torch

PROMPTS = itertools.count()


@lru_cache(maxsize=4096)
def encode(prompt):
    return torch.zeros(256)  # here


def answer(_):
    return encode(next(PROMPTS)).sum()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(20)))
