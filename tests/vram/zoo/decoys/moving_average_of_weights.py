"""An averaged copy of the model follows it in place."""
# expect: plateau

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

MODEL = nn.Linear(16, 16)
AVERAGED = AveragedModel(MODEL)


def train(batch):
    MODEL(batch).square().mean().backward()
    with torch.no_grad():
        for weight in MODEL.parameters():
            weight -= 0.01 * weight.grad
    AVERAGED.update_parameters(MODEL)


def test_training(vram):
    vram.assert_stable(vram.replay(train, [torch.full((4, 16), float(n)) for n in range(20)]))
