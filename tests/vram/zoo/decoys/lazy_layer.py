"""A layer takes its width from the first batch; a second one, which is never used, has no storage yet."""
# expect: stable

import torch

UNUSED = torch.nn.LazyLinear(8)
MODEL = torch.nn.LazyLinear(16)


@torch.inference_mode()
def answer(length):
    return MODEL(torch.ones(length, 8))


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
