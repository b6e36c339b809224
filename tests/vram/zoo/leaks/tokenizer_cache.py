"""A cache of prompts is keyed by the whole text, and every text carries the time."""
# expect: grows
# holder: key `tensor` of dict (* items) at key `*` of dict `cache` (* items),
#   attribute of Tokenizer `TOKENIZER`, global *

import itertools

import torch


class Tokenizer:
    def __init__(self):
        self.cache = {}

    def __call__(self, text):
        if text not in self.cache:
            self.cache[text] = {"text": text, "tensor": torch.tensor([ord(letter) for letter in text])}  # here
        return self.cache[text]["tensor"]


TOKENIZER = Tokenizer()
CLOCK = itertools.count()


def answer(question):
    return TOKENIZER(f"{next(CLOCK):06}: {question}").sum()


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, [f"question {n}?" for n in range(20)]))
