"""Logits of every token, where only the last is used."""
# category: logits
# module: lm_head
# way out: full logits
# line: transformers/models/llama/modeling_llama.py:* LlamaForCausalLM.forward

import torch
from tiny import llama, prompts

SAMPLE = prompts(1, 12)[0].repeat(1, 20)
MODEL = llama()


@torch.inference_mode()
def step(ids):
    return MODEL(ids, logits_to_keep=1, use_cache=False).logits[0, -1].argmax()  # base
    return MODEL(ids, use_cache=False).logits[0, -1].argmax()  # head
