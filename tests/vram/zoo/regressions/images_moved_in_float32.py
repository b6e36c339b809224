"""Pixels are made float32 on their way to the model."""
# category: inputs
# module:

import torch

SAMPLE = torch.ones(1, 3, 64, 64, dtype=torch.bfloat16)
MODEL = torch.nn.Flatten()


@torch.inference_mode()
def step(x):
    pixels = x.clone()  # base
    pixels = x.to(torch.float32)  # head # here
    return MODEL(pixels)
