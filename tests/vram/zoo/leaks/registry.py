"""Every request enters itself into the class's list of open requests; nobody takes it out."""
# expect: grows
# holder: attribute `ids` of Request at key `*` of dict `open` (* items),
#   class attribute of class test_registry.Request

import itertools

import torch


class Request:
    open = {}  # noqa: RUF012 - the fault
    numbers = itertools.count()

    def __init__(self, length):
        self.ids = torch.zeros(length, dtype=torch.long)  # here
        self.open[next(self.numbers)] = self


def answer(length):
    return Request(length).ids.sum()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
