"""Statistics gather over 37 calls and are emptied then: a saw that has nothing to do with the laps."""
# expect: stable

import torch

SEEN = []


def answer(length):
    SEEN.append(torch.zeros(length, 4))
    if len(SEEN) == 37:
        SEEN.clear()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
