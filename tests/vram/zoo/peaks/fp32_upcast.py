"""Scores of half precision are made float32 for the softmax: the largest tensor of all, twice as large."""
# expect: RatioExceeded
# says: upcast needs 2.500 x to 2.500 x the requested_peak of half * too much in 5 of 5 samples

import torch


def half(n):
    scores = torch.ones(4, n, n, dtype=torch.bfloat16)
    return scores.softmax(-1)


def upcast(n):
    scores = torch.ones(4, n, n, dtype=torch.bfloat16)
    return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)


def test_a_rewrite_needs_no_more(vram):
    lengths = [64, 96, 128, 160, 192]
    vram.assert_ratio(vram.replay(upcast, lengths), vram.replay(half, lengths), at_most=1.0)
