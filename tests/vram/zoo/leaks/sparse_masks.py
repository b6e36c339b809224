"""The mask of every prompt is kept as a sparse tensor, to be small: its indices and values are tensors all the same."""
# expect: grows
# holder: list `MASKS` (* items), global of module test_sparse_masks

import torch

MASKS = []


def answer(length):
    MASKS.append(torch.eye(length).to_sparse())  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
