"""A cache with weak values keeps an image's features as long as somebody uses them."""
# expect: stable

import weakref

import torch

CACHE = weakref.WeakValueDictionary()


def features(length):
    found = CACHE.get(length)
    if found is None:
        CACHE[length] = found = torch.zeros(length, 16)
    return found


def answer(length):
    return (features(length) + features(length)).sum()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
