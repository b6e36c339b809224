"""`.numpy()` shares the tensor's memory: the arrays that are kept keep the tensors."""
# expect: grows
# holder: NumPy array held by list `ROWS` (* items), global of module test_numpy_views_kept

import torch

ROWS = []


def answer(length):
    ROWS.append(torch.full((length, 4), 1.0).numpy()[0])  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
