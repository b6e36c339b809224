"""One KV cache is given to every question: each is appended to all that came before."""
# expect: grows
# line: transformers/cache_utils.py:* DynamicLayer.update
# holder: attribute `*` of DynamicLayer in list `layers` (2 items), attribute of DynamicCache `CACHE`,
#   global of module *

import torch
from tiny import llama, prompts
from transformers import DynamicCache

MODEL = llama()
CACHE = DynamicCache()


@torch.inference_mode()
def answer(ids):
    return MODEL(ids, past_key_values=CACHE).logits[:, -1].argmax()  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, prompts(longest=4)))
