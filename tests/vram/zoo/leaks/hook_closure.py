"""A forward hook appends the features of a layer to a list of the function that registered it."""
# expect: grows
# holder: list `features` (* items), closure variable of function keep, forward hook of Linear `0`, submodule of *

import torch
from torch import nn


def watched():
    features = []

    def keep(module, inputs, output):
        features.append(output.detach())

    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    model[0].register_forward_hook(keep)
    return model


MODEL = watched()


@torch.inference_mode()
def answer(batch):
    return MODEL(batch)  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, [torch.ones(n, 8) for n in range(1, 21)]))
