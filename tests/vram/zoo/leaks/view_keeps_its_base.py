"""Only the logits of the last token are kept; they are a view, and keep those of all tokens."""
# expect: grows
# line: transformers/models/llama/modeling_llama.py:* LlamaForCausalLM.forward
# holder: list `LAST` (* items), global of module test_view_keeps_its_base (a view of 2,048 B keeps the whole storage)

import torch
from tiny import llama, prompts

MODEL = llama()
LAST = []


@torch.inference_mode()
def answer(ids):
    LAST.append(MODEL(ids, use_cache=False).logits[0, -1])  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, prompts()))
