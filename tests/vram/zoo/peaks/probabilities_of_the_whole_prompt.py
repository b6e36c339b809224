"""Probabilities are made for the whole prompt, where the last token's are used; the weights are not counted."""
# expect: PeakExceeded
# says: above what was alive before the first sample
# says: besides * was alive before the first sample
# says: 256.00 KiB in 1: test_probabilities_of_the_whole_prompt.py:* answer: aten._softmax float32 [64, 1024]

import torch

HEAD = torch.ones(32, 1024)


def answer(length):
    logits = torch.ones(length, 32) @ HEAD
    return logits.softmax(-1)[-1]


def test_answers_fit(vram):
    recording = vram.replay(answer, [16, 64, 32])
    vram.assert_stable(recording)
    vram.assert_peak(recording, "300 KiB", above_start=True)  # the logits of the longest are 256 KiB
