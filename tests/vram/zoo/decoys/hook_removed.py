"""A hook is registered for each call, and removed when the call is over."""
# expect: stable

import torch
from torch import nn

MODEL = nn.Linear(8, 64)


@torch.inference_mode()
def answer(batch):
    seen = []
    handle = MODEL.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        MODEL(batch)
    finally:
        handle.remove()
    return seen[0].sum()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, [torch.ones(n, 8) for n in range(1, 21)]))
