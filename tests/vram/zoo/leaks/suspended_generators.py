"""A stream of tokens is read up to its first and then left, not closed; the generator keeps its state."""
# expect: grows
# holder: local `state` of suspended generator stream in list `STREAMS` (* items), global of module test_*

import torch

STREAMS = []


def stream(length):
    state = torch.zeros(length)  # here
    for position in range(length):
        yield state[position]


def answer(length):
    STREAMS.append(stream(length))
    return float(next(STREAMS[-1]))


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
