"""The first call of each layer makes a table, as rotary embeddings do; no later call makes one."""
# expect: plateau

import torch

TABLES = {}


def answer(length):
    for layer in range(4):
        if (layer, length) not in TABLES:
            TABLES[layer, length] = torch.arange(64.0) * layer
    return TABLES[0, length].sum() * length


def test_answers(vram):
    vram.assert_stable(vram.replay(answer, range(1, 21)))
