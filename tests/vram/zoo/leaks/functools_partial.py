"""Callbacks are kept as partials, with the tensors they are to be called with."""
# expect: grows
# holder: tuple `args` (1 item), attribute of partial in list `CALLBACKS` (* items), global of module test_*

from functools import partial

import torch

CALLBACKS = []


def report(scores):
    return scores.mean()


def answer(length):
    CALLBACKS.append(partial(report, torch.zeros(length)))  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
