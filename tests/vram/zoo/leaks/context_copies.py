"""The context of every request is kept for its callbacks, with the tensor that a context variable holds in it."""
# expect: grows
# holder: context variable `CURRENT` of Context in list `CONTEXTS` (* items), global of module test_context_copies

import contextvars

import torch

CURRENT = contextvars.ContextVar("CURRENT")
CONTEXTS = []


def handle(length):
    CURRENT.set(torch.zeros(length))  # here


def answer(length):
    context = contextvars.copy_context()
    context.run(handle, length)
    CONTEXTS.append(context)


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
