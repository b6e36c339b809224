"""Every seventh sample is kept as an example."""
# expect: grows
# holder: list `EXAMPLES` (* items), global of module test_every_seventh_sample
# says: *only from samples 0, 7, 14*

import torch

EXAMPLES = []


def answer(number):
    hidden = torch.zeros(64)  # here
    if number % 7 == 0:
        EXAMPLES.append(hidden)


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(20)))
