"""`np.from_dlpack` shares the tensor's memory with NumPy: the arrays that are kept keep the tensors."""
# expect: grows
# holder: NumPy array held by list `ROWS` (* items), global of module test_dlpack_arrays_kept

import numpy as np
import torch

ROWS = []


def answer(length):
    ROWS.append(np.from_dlpack(torch.full((length, 4), 1.0)))  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
