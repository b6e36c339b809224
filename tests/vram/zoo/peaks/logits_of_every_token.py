"""Logits of all tokens are computed where only those of the last are needed."""
# expect: RatioExceeded
# says: all_logits needs * too much in 10 of 10 samples
# suggests: full logits

import torch
from tiny import llama, prompts

MODEL = llama()


@torch.inference_mode()
def all_logits(ids):
    return MODEL(ids, use_cache=False).logits[0, -1].argmax()


@torch.inference_mode()
def last_logits(ids):
    return MODEL(ids, use_cache=False, logits_to_keep=1).logits[0, -1].argmax()


def test_only_the_last_logits_are_made(vram):
    questions = prompts(longest=32)
    every = vram.replay(all_logits, questions, laps=3)
    last = vram.replay(last_logits, questions, laps=3)
    vram.assert_ratio(every, last, at_most=1.0)
