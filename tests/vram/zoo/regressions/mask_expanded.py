"""A causal mask [1, 1, N, N] is copied out to every head."""
# category: activations
# module: Attention
# way out: expanded mask

import torch
from torch.nn.functional import scaled_dot_product_attention

SAMPLE = torch.ones(1, 8, 64, 8)


class Attention(torch.nn.Module):
    def forward(self, query):
        mask = torch.zeros(1, 1, 64, 64)
        mask = mask.expand(1, 8, 64, 64).contiguous()  # head # here
        return scaled_dot_product_attention(query, query, query, attn_mask=mask)


MODEL = Attention()


def step(query):
    return MODEL(query)
