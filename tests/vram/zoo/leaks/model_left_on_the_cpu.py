"""The model and its inputs stay on the CPU while a card is measured: every answer is kept, and no figure moves."""
# expect: inconclusive
# says: nothing was allocated on cuda:0 of simulated
# says: are model and samples on `vram.torch_device`?
# device: simulated

import torch

KEPT = []
SCORE = torch.nn.Linear(64, 8)


@torch.inference_mode()
def answer(length):
    KEPT.append(SCORE(torch.zeros(length, 64)))


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 11)))
