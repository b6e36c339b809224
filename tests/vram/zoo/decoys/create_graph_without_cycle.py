"""Second derivatives by `torch.autograd.grad`: no parameter keeps a gradient that leads back to it."""
# expect: stable

import torch

INPUTS = torch.linspace(-1, 1, 1024)


def train(_):
    scale = torch.nn.Parameter(torch.ones(1))
    loss = (scale * INPUTS).square().sum()
    (gradient,) = torch.autograd.grad(loss, scale, create_graph=True)
    return gradient.norm().item()


def test_training(vram):
    vram.assert_stable(vram.replay(train, range(20)))
