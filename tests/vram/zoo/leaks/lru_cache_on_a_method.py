"""`cache` on a method keeps every object it was called on, and the tensors that they hold."""
# expect: grows
# holder: attribute `ids` of Prompt in tuple (1 item), argument of lru_cache of Prompt.embed,
#   class attribute of class test_*.Prompt

from functools import cache

import torch


class Prompt:
    def __init__(self, length):
        self.ids = torch.zeros(length, 16)  # here

    @cache  # noqa: B019 - the fault
    def embed(self):
        return float(self.ids.sum())


def answer(length):
    return Prompt(length).embed()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
