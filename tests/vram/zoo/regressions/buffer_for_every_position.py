"""A table of positions is made for 8192 of them, where 512 are used."""
# category: buffers
# module: Embedding

import torch

SAMPLE = torch.ones(4, 16)


class Embedding(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(512, 16))  # base
        self.register_buffer("table", torch.zeros(8192, 16))  # head

    def forward(self, x):
        return x + self.table[: len(x)]


MODEL = Embedding()


@torch.inference_mode()
def step(x):
    return MODEL(x)
