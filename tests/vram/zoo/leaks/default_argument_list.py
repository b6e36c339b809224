"""A list as default argument is made once, and grows with every call."""
# expect: grows
# holder: list `history` (* items), default argument of the step answer

import torch


def answer(length, history=[]):  # noqa: B006 - the fault
    history.append(torch.zeros(length))  # here
    return len(history)


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
