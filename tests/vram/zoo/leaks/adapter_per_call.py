"""Each request adds an adapter to the model and leaves it there."""
# expect: grows
# holder: parameter `weight` of Linear `user_*`, submodule of Linear `BASE`, global of module test_adapter_per_call

import itertools

import torch
from torch import nn

BASE = nn.Linear(16, 16)
USERS = itertools.count()


@torch.inference_mode()
def answer(batch):
    name = f"user_{next(USERS)}"
    BASE.add_module(name, nn.Linear(16, 16, bias=False))  # here
    return BASE(batch) + getattr(BASE, name)(batch)


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, [torch.ones(n, 16) for n in range(1, 21)]))
