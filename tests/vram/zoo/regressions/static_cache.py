"""A cache for 2048 tokens is made, where 128 are needed."""
# category: KV cache
# module: layers.*.self_attn
# line: transformers/cache_utils.py:* StaticLayer.lazy_initialization

import torch
from tiny import llama, prompts
from transformers import StaticCache

SAMPLE = prompts(1, 12)[0].repeat(1, 10)
MODEL = llama(attn_implementation="sdpa")


@torch.inference_mode()
def step(ids):
    cache = StaticCache(MODEL.config, max_cache_len=128)  # base
    cache = StaticCache(MODEL.config, max_cache_len=2048)  # head
    return MODEL.model(ids, past_key_values=cache).last_hidden_state
