"""Adam makes its two moments in its first step, and changes them in place from then on."""
# expect: stable

import torch
from torch import nn

MODEL = nn.Linear(64, 64)
OPTIMIZER = torch.optim.Adam(MODEL.parameters())


def train(batch):
    OPTIMIZER.zero_grad()
    MODEL(batch).square().mean().backward()
    OPTIMIZER.step()


def test_training(vram):
    vram.assert_stable(vram.replay(train, [torch.full((8, 64), float(n)) for n in range(20)]))
