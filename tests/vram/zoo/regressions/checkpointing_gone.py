"""Checkpointing is gone: the activations of every block are alive at the backward pass."""
# category: activations
# module: blocks.*.*

import torch
from torch.utils.checkpoint import checkpoint

SAMPLE = torch.ones(512, 64)
BLOCKS = torch.nn.ModuleList(
    torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64)) for _ in range(6)
)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = BLOCKS

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)  # base
            x = block(x)  # head # here
        return x


MODEL = Model()


def step(x):
    MODEL(x).sum().backward()
    MODEL.zero_grad()
