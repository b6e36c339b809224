"""`losses.append(loss)` keeps the graph of every loss; `loss.item()` was meant."""
# expect: grows
# holder: autograd graph (*) of a tensor held by list `losses` (* items), attribute of Trainer `TRAINER`, global of *
# suggests: graph of every sample

import torch
from torch import nn


class Trainer:
    def __init__(self):
        self.model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))
        self.losses = []

    def evaluate(self, batch):
        loss = self.model(batch).square().mean()  # here
        self.losses.append(loss)


TRAINER = Trainer()


def test_evaluation(vram):
    torch.manual_seed(0)
    vram.assert_stable(vram.replay(TRAINER.evaluate, [torch.randn(8, 32) for _ in range(20)]))
