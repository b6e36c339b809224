"""Softmax of half-precision scores is asked for in float32."""
# category: activations
# module: Attention

import torch

SAMPLE = torch.ones(1, 4, 96, 96, dtype=torch.bfloat16)


class Attention(torch.nn.Module):
    def forward(self, scores):
        scores = scores * 2
        return scores.softmax(-1)  # base
        return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)  # head # here


MODEL = Attention()


def step(scores):
    return MODEL(scores)
