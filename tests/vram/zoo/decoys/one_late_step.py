"""At call 70 a larger workspace is made, once."""
# expect: plateau

import itertools

import torch

CALLS = itertools.count()
WORKSPACE = [torch.zeros(1024)]


def answer(_):
    if next(CALLS) == 70:
        WORKSPACE[0] = torch.zeros(4096)
    return WORKSPACE[0].sum()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(20)))
