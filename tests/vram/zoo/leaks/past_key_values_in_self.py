"""A chat keeps the KV cache of its last turn in `self`, and a chat is kept for every user."""
# expect: grows
# line: transformers/cache_utils.py:* DynamicLayer.update
# holder: attribute `*` of DynamicLayer in list `layers` *, attribute of DynamicCache `past`,
#   attribute of Chat in list *
# suggests: cache of every request

import torch
from tiny import llama, prompts

MODEL = llama()
CHATS = []


class Chat:
    @torch.inference_mode()
    def ask(self, ids):
        self.past = MODEL(ids, logits_to_keep=1).past_key_values  # here


def answer(ids):
    CHATS.append(Chat())
    CHATS[-1].ask(ids)


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, prompts()))
