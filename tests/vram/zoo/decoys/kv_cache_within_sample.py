"""Within a sample the KV cache grows with every token; it goes with the sample."""
# expect: stable

import torch
from tiny import llama, prompts

MODEL = llama()


@torch.inference_mode()
def answer(ids):
    return MODEL.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, prompts(count=5)))
