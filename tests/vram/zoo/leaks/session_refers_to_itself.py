"""A session and its request refer to each other, and the server has switched the collector off."""
# expect: GarbageExceeded
# says: a sample makes up to 16.00 KiB that only the garbage collector frees (Session, float32 [64, 64])

import gc

import torch


class Session:
    def __init__(self, length):
        self.cache = torch.zeros(length, 64)
        self.request = {"session": self}


def answer(length):
    Session(length)


def test_answers(vram):
    gc.disable()
    try:
        recording = vram.replay(answer, [64] * 4)
    finally:
        gc.enable()
    vram.assert_garbage(recording, "1 KiB")
