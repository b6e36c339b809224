"""A failed sample is remembered with its exception: the traceback keeps the frames, the frames keep their tensors."""
# expect: grows
# holder: local `hidden` of decode (test_exception_traceback.py:*),
#   in the traceback of exception ValueError in tuple (2 items) in list `FAILED` *

import torch

FAILED = []


def decode(length):
    hidden = torch.zeros(length, 32)  # here
    if length % 2:
        raise ValueError(f"no answer in {hidden.shape}")
    return hidden


def answer(length):
    try:
        return decode(length)
    except ValueError as error:
        FAILED.append((length, error))


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
