"""The previous answer is still in a variable while the next one is made: nothing grows, and two are alive at once."""
# expect: PeakExceeded
# says: answer: requested_peak * first in sample * of lap *

import torch

LAST = {}


def answer(length):
    LAST["scores"] = torch.ones(length, 256).softmax(-1)


def test_answers_fit(vram):
    recording = vram.replay(answer, [64, 256, 256, 128])
    vram.assert_stable(recording)
    # The longest sample makes 256 KiB and needs 256 KiB for it; the one before should be gone by then.
    vram.assert_peak(recording, "513 KiB", besides_bytes=recording.before["requested"])
