"""The cache of a prompt is copied for all answers at once, where it was for one after the other."""
# category: KV cache
# module: model.layers.*.self_attn
# line: transformers/cache_utils.py:* DynamicLayer.update

import copy

import torch
from tiny import llama, prompts

SAMPLE = prompts(1, 12)[0].repeat(1, 60)
MODEL = llama(attn_implementation="sdpa")
with torch.inference_mode():
    CACHE = MODEL(SAMPLE, logits_to_keep=1).past_key_values


@torch.inference_mode()
def step(ids):
    copies = (copy.deepcopy(CACHE) for _ in range(4))  # base
    copies = [copy.deepcopy(CACHE) for _ in range(4)]  # head
    return [MODEL(ids[:, -1:], past_key_values=cache).logits.argmax() for cache in copies]
