"""Only the last output is kept, each in place of the one before; sizes vary."""
# expect: stable

import torch
from tiny import llama, prompts


class Chat:
    def __init__(self):
        self.model, self.last = llama(), None

    @torch.inference_mode()
    def ask(self, ids):
        self.last = self.model(ids)


CHAT = Chat()


def test_answers(vram):
    vram.assert_stable(vram.replay(CHAT.ask, prompts(count=10)))
