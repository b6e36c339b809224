"""`inference_mode` is gone: every activation is kept for a backward pass that never comes."""
# category: activations
# module: *.*

import contextlib

import torch

SAMPLE = torch.ones(64, 64)
MODEL = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU()) for _ in range(6)))
MODE = torch.inference_mode  # base
MODE = contextlib.nullcontext  # head


def step(x):
    with MODE():
        return MODEL(x)  # here
