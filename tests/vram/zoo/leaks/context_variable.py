"""A trace of the request is kept in a context variable, which nobody sets back when the request is over."""
# expect: grows
# holder: tuple `trace` (* items), context variable of a thread's context

import contextvars

import torch

TRACE = contextvars.ContextVar("trace", default=())


def answer(length):
    TRACE.set((*TRACE.get(), torch.zeros(length)))  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
