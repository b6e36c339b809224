"""Gradients are set to zero and no longer let go of."""
# category: gradients
# module:

import torch

SAMPLE = torch.ones(4, 128)
MODEL = torch.nn.Sequential(torch.nn.Linear(128, 128), torch.nn.Linear(128, 128))
OPTIMIZER = torch.optim.SGD(MODEL.parameters(), lr=0.1)


def step(x):
    x.repeat(200, 1).sum()
    MODEL(x).sum().backward()
    OPTIMIZER.step()
    OPTIMIZER.zero_grad()  # base
    OPTIMIZER.zero_grad(set_to_none=False)  # head


step(SAMPLE)
