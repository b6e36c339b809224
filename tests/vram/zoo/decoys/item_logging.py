"""`loss.item()` goes into a list and into the log: numbers, no tensors."""
# expect: stable

import logging

import torch
from torch import nn

MODEL = nn.Linear(16, 1)
LOSSES = []
LOG = logging.getLogger("zoo")


def train(batch):
    loss = MODEL(batch).square().mean()
    loss.backward()
    MODEL.zero_grad()
    LOSSES.append(loss.item())
    LOG.warning("loss %.3f", loss.item())


def test_training(vram):
    vram.assert_stable(vram.replay(train, [torch.full((4, 16), float(n)) for n in range(20)]))
