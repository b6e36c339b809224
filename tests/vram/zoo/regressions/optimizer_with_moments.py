"""SGD became Adam: two moments for each weight."""
# category: optimizer state
# module:

import torch

SAMPLE = torch.ones(4, 128)
MODEL = torch.nn.Linear(128, 128)
OPTIMIZER = torch.optim.SGD(MODEL.parameters(), lr=0.1)  # base
OPTIMIZER = torch.optim.Adam(MODEL.parameters(), lr=0.1, foreach=False)  # head


def step(x):
    MODEL(x).sum().backward()
    OPTIMIZER.step()
    OPTIMIZER.zero_grad()


step(SAMPLE)
