"""A function keeps what it saw in an attribute of its own."""
# expect: grows
# holder: list `seen` (* items), attribute of the step answer

import torch


def answer(length):
    answer.seen.append(torch.zeros(length))  # here


answer.seen = []


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
