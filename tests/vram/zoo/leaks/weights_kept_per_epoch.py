"""A copy of the weights is kept after each epoch; only the best was meant."""
# expect: grows
# holder: key `weight` of OrderedDict (2 items) in list `CHECKPOINTS` (* items), global of module test_*

import copy

import torch
from torch import nn

MODEL = nn.Linear(32, 32)
CHECKPOINTS = []


@torch.no_grad()
def epoch(_):
    MODEL.weight.mul_(0.99)
    CHECKPOINTS.append(copy.deepcopy(MODEL.state_dict()))  # here


def test_epochs(vram):
    vram.assert_stable(vram.replay(epoch, range(20)))
