"""A text is encoded only once: the cache has one entry for each different question."""
# expect: plateau

import torch
from tiny import llama, prompts

MODEL = llama()
CACHE = {}


@torch.inference_mode()
def answer(ids):
    key = tuple(ids[0].tolist())
    if key not in CACHE:
        CACHE[key] = MODEL(ids, logits_to_keep=1).past_key_values
    return CACHE[key].get_seq_length()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, prompts(count=10)))
