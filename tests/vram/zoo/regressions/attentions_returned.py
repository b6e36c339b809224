"""Attention maps of every layer are returned, and nobody reads them."""
# category: attention maps
# module: model.layers.*.self_attn
# way out: attentions returned
# line: transformers/models/llama/modeling_llama.py:* eager_attention_forward

import torch
from tiny import llama, prompts

SAMPLE = prompts(1, 12)[0].repeat(1, 20)
MODEL = llama(attn_implementation="eager")


@torch.inference_mode()
def step(ids):
    return MODEL(ids, use_cache=False, logits_to_keep=1).logits.argmax()  # base
    return MODEL(ids, use_cache=False, logits_to_keep=1, output_attentions=True).logits.argmax()  # head
