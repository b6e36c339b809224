"""The last 30 features are kept for a moving average, which is more than a lap."""
# expect: plateau

from collections import deque

import torch

LAST = deque(maxlen=30)


def answer(number):
    LAST.append(torch.full((128,), float(number)))
    return torch.stack(tuple(LAST)).mean()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(20)))
