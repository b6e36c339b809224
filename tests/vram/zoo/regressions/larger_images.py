"""Images are loaded twice as wide."""
# category: inputs
# module:

import torch

SAMPLE = torch.ones(1, 3, 32, 32)  # base
SAMPLE = torch.ones(1, 3, 32, 64)  # head
MODEL = torch.nn.Flatten()


@torch.inference_mode()
def step(x):
    return MODEL(x)
