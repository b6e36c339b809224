"""The request refers to its session weakly: reference counting frees both at once, collector or not."""
# expect: stable

import weakref

import torch


class Session:
    def __init__(self, length):
        self.cache = torch.zeros(length, 64)
        self.request = {"session": weakref.ref(self)}


def answer(length):
    Session(length)


def test_answers(vram):
    recording = vram.replay(answer, [64] * 4)
    vram.assert_garbage(recording, 0)
    vram.assert_stable(recording)
