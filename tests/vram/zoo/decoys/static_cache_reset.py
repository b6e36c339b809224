"""A static KV cache is made once, and reset for every question."""
# expect: stable
# suggests: full logits

import torch
from tiny import llama, prompts
from transformers import StaticCache

MODEL = llama()
CACHE = StaticCache(config=MODEL.config, max_cache_len=32)


@torch.inference_mode()
def answer(ids):
    CACHE.reset()
    return MODEL(ids, past_key_values=CACHE).logits[0, -1].argmax()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, prompts(count=10)))
