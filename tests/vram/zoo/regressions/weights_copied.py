"""A float32 copy of the weights is kept beside them."""
# category: weights
# module:

import copy

import torch

SAMPLE = torch.ones(4, 128)
MODEL = torch.nn.Linear(128, 128)
KEPT = MODEL  # base
KEPT = copy.deepcopy(MODEL)  # head


@torch.inference_mode()
def step(x):
    return MODEL(x)
