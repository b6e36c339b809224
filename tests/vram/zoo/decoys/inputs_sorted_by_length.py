"""Questions come shortest first, so that each needs more than the one before."""
# expect: stable
# suggests: full logits

import torch
from tiny import llama, prompts

MODEL = llama()


@torch.inference_mode()
def answer(ids):
    return MODEL(ids).logits[0, -1].argmax()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, sorted(prompts(longest=40), key=lambda ids: ids.shape[1])))
