"""Attention is made eagerly: a map of every head."""
# category: attention maps
# module: model.layers.*.self_attn
# line: transformers/models/llama/modeling_llama.py:* eager_attention_forward

import torch
from tiny import llama, prompts

SAMPLE = prompts(1, 120)[0].repeat(1, 12)
MODEL = llama(attn_implementation="sdpa")  # base
MODEL = llama(attn_implementation="eager")  # head


@torch.inference_mode()
def step(ids):
    return MODEL(ids, logits_to_keep=1, use_cache=False).logits.argmax()
