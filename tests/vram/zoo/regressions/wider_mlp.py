"""The hidden layer of a block is four times as wide as it was."""
# category: weights
# module: *

import torch

SAMPLE = torch.ones(2, 64)
WIDTH = 64  # base
WIDTH = 256  # head
MODEL = torch.nn.Sequential(torch.nn.Linear(64, WIDTH), torch.nn.Linear(WIDTH, 64))


@torch.inference_mode()
def step(x):
    return MODEL(x)
