"""A hook on a parameter is registered in every step, with that step's scale in its closure."""
# expect: grows
# holder: closure variable `scale` of function <lambda>, gradient hook of Parameter `WEIGHT`, global of module test_*

import torch
from torch import nn

WEIGHT = nn.Parameter(torch.ones(64))


def train(length):
    scale = torch.full((64,), 1 / length)  # here
    WEIGHT.register_hook(lambda gradient: gradient * scale)
    (WEIGHT.sum() * length).backward()
    WEIGHT.grad = None


def test_training(vram):
    vram.assert_stable(vram.replay(train, range(1, 6)))
