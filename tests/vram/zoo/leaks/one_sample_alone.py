"""The scratch of one sample is a little larger each time; no other sample shows it."""
# expect: undecided
# says: *sample 3 rises in every lap, and no growth is common to all samples*

import itertools

import torch

TIMES = itertools.count(1)


def answer(number):
    if number == 3:
        torch.zeros(100 * next(TIMES))  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(20)))
