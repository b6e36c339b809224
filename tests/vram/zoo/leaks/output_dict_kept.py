"""Every output of the model is kept, in a dictionary by question, to be looked at when the run is over."""
# expect: grows
# line: transformers/models/llama/modeling_llama.py:* LlamaForCausalLM.forward
# holder: key `logits` of CausalLMOutputWithPast (2 items) at key `*` of dict `OUTPUTS` (* items),
#   global of module test_*
# suggests: cache of every request

import torch
from tiny import llama, prompts

MODEL = llama()
OUTPUTS = {}


@torch.inference_mode()
def answer(ids):
    OUTPUTS[len(OUTPUTS)] = MODEL(ids)  # here


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, prompts()))
