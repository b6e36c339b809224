"""A scratch buffer is as large as the longest input so far."""
# expect: plateau

import torch

SCRATCH = torch.empty(0)


def answer(length):
    if SCRATCH.numel() < 32 * length:
        SCRATCH.resize_(32 * length)
    return SCRATCH[: 32 * length].fill_(1).sum()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, [3, 9, 4, 17, 11, 25, 8, 40, 2, 31]))
