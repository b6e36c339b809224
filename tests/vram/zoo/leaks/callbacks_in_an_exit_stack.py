"""Buffers are to be zeroed at the end: their own methods are registered for that, and each keeps its buffer."""
# expect: grows
# holder: self of bound method Tensor.zero_ `__wrapped__`, attribute of function _exit_wrapper in tuple (2 items) in
#   deque `_exit_callbacks` (* items), attribute of ExitStack `AT_THE_END`, global of module *

import contextlib

import torch

AT_THE_END = contextlib.ExitStack()


def answer(length):
    AT_THE_END.callback(torch.zeros(length).zero_)  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
