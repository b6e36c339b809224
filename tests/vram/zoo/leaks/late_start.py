"""Nothing is kept until call 60; then a flag is set, and everything is."""
# expect: grows
# holder: list `KEPT` (* items), global of module test_late_start
# says: *since sample * of lap *

import itertools

import torch

CALLS = itertools.count()
KEPT = []


def answer(length):
    hidden = torch.zeros(length)  # here
    if next(CALLS) >= 60:
        KEPT.append(hidden)


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
