"""A gradient with a graph of its own (`create_graph=True`) leads back to its parameter: neither ever ends."""
# expect: grows
# holder: a reference cycle in autograd: the gradient of a float32 [1] tensor has a graph that leads back to it, *

import pytest
import torch

INPUTS = torch.linspace(-1, 1, 1024)


def train(_):
    scale = torch.nn.Parameter(torch.ones(1))
    loss = (scale * INPUTS).square().sum()  # here
    loss.backward(create_graph=True)
    return scale.grad.norm().item()


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_training(vram):
    vram.assert_stable(vram.replay(train, range(20)))
