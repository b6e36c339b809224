"""Probabilities are made for the last token alone; weights that are larger than the limit are not counted."""
# expect: stable

import torch

HEAD = torch.ones(128, 1024)


def answer(length):
    logits = torch.ones(length, 128) @ HEAD
    return logits[-1].softmax(-1)


def test_answers_fit(vram):
    recording = vram.replay(answer, [16, 64, 32])
    vram.assert_stable(recording)
    vram.assert_peak(recording, "300 KiB", above_start=True)  # 32 KiB of input, 256 KiB of logits
