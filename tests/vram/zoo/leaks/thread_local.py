"""A per-thread scratch list is extended by each call, and emptied by none."""
# expect: grows
# holder: list `scratch` (* items), attribute of thread-local `LOCAL`, global of module test_thread_local

import threading

import torch

LOCAL = threading.local()


def answer(length):
    if not hasattr(LOCAL, "scratch"):
        LOCAL.scratch = []
    LOCAL.scratch.append(torch.zeros(length))  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
