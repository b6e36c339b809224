"""`__del__` puts the object back into a pool that nobody takes from."""
# expect: grows
# holder: attribute `data` of Buffer in list `POOL` (* items), global of module test_resurrecting_del

import torch

POOL = []


class Buffer:
    def __init__(self, length):
        self.data = torch.zeros(length)  # here

    def __del__(self):
        POOL.append(self)


def answer(length):
    Buffer(length)


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
