"""512 B a sample stay, beside work of many sizes, a ring of the last three and a cache that fills."""
# expect: grows
# holder: list `KEPT` (* items), global of module test_half_a_kilobyte
# says: *grows by 512 B a sample*

from collections import deque
from functools import lru_cache

import torch

KEPT, RING = [], deque(maxlen=3)


@lru_cache
def positions(length):
    return torch.arange(length)


def answer(length):
    hidden = torch.ones(length, 1000)
    RING.append(hidden.sum(0))
    positions(length)
    KEPT.append(torch.zeros(128))  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, [5, 80, 17, 33, 2, 61, 44, 9, 70, 28]))
