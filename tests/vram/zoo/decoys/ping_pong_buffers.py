"""Two buffers take turns: while one is read, the next is made in place of the other."""
# expect: plateau

import itertools

import torch

TURN = itertools.cycle((0, 1))
BUFFERS = [torch.zeros(0), torch.zeros(0)]


def answer(length):
    BUFFERS[next(TURN)] = torch.zeros(length, 32)
    return sum(buffer.sum() for buffer in BUFFERS)


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, [5, 3, 9, 1, 7]))
