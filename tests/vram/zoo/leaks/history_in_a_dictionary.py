"""A trainer's history has a list for each metric; the metrics are tensors."""
# expect: grows
# holder: list (* items) at key `loss` of dict `history` (2 items), attribute of Trainer `TRAINER`, global *

import torch


class Trainer:
    def __init__(self):
        self.history = {"loss": [], "seconds": []}

    @torch.no_grad()
    def train(self, batch):
        self.history["loss"].append(batch.square().mean(dim=1))  # here
        self.history["seconds"].append(0.0)


TRAINER = Trainer()


def test_training(vram):
    vram.assert_stable(vram.replay(TRAINER.train, [torch.ones(n, 4) for n in range(1, 21)]))
