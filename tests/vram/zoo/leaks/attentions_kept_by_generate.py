"""`generate` returns attentions, and its whole output is kept where only the text was meant."""
# expect: grows
# line: transformers/*:* *
# holder: tuple (2 items) in tuple (1 item) at key `attentions` of GenerateDecoderOnlyOutput (3 items) in list
#   `ANSWERS` *
# suggests: cache of every request

import torch
from tiny import llama, prompts

MODEL = llama(attn_implementation="eager")
ANSWERS = []


@torch.inference_mode()
def answer(ids):
    given = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 1, "do_sample": False}
    ANSWERS.append(MODEL.generate(ids, **given, output_attentions=True, return_dict_in_generate=True))  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, prompts(count=5, longest=40)))
