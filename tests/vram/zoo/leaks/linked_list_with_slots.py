"""A request knows the one before it, which knows the one before it: the newest keeps them all."""
# expect: grows
# holder: attribute `data` of Request `before` (* links on), attribute of Request `NEWEST`, global of module test_*

import torch


class Request:
    __slots__ = ("before", "data")

    def __init__(self, length, before):
        self.data = torch.zeros(length)  # here
        self.before = before


NEWEST = None


def answer(length):
    global NEWEST
    NEWEST = Request(length, before=NEWEST)


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
