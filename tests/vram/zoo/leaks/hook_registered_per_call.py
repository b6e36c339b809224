"""Each call registers a hook that scales the output, and never removes it."""
# expect: grows
# holder: closure variable `scale` of function *<lambda>, forward hook of Linear `MODEL`, global of module test_*

import torch
from torch import nn

MODEL = nn.Linear(8, 64)


@torch.inference_mode()
def answer(strength):
    scale = torch.full((64,), strength)  # here
    MODEL.register_forward_hook(lambda module, inputs, output: output * scale)
    return MODEL(torch.ones(1, 8))


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, [1 / n for n in range(1, 21)]))
