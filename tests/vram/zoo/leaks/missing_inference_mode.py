"""An evaluation without `no_grad` adds up its loss: the graph of every sample hangs on the sum."""
# expect: grows
# holder: autograd graph (*) of a tensor held by attribute `total` of Metric `METRIC`, global of module test_*
# suggests: graph of every sample

import torch
from torch import nn

MODEL = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1))


class Metric:
    total = 0.0


METRIC = Metric()


def evaluate(batch):
    METRIC.total = METRIC.total + MODEL(batch).square().mean()  # here


def test_evaluation(vram):
    vram.assert_stable(vram.replay(evaluate, [torch.ones(4, 16) * n for n in range(20)]))
