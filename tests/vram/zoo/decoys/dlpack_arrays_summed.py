"""`np.from_dlpack` shares the tensor's memory with NumPy, and only a number computed from it is kept."""
# expect: stable

import numpy as np
import torch

SUMS = []


def answer(length):
    SUMS.append(float(np.from_dlpack(torch.full((length, 4), 1.0)).sum()))


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
