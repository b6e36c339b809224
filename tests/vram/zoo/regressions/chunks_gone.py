"""A long input is no longer worked on in chunks."""
# category: activations
# module: *

import torch

SAMPLE = torch.ones(512, 32)
MODEL = torch.nn.Sequential(torch.nn.Linear(32, 128), torch.nn.GELU(), torch.nn.Linear(128, 32))


@torch.inference_mode()
def step(x):
    return torch.cat([MODEL(part) for part in x.split(64)])  # base
    return torch.cat([MODEL(part) for part in x.split(512)])  # head # here
