"""A LLaMA with random weights and the inputs for it, as small as they get: for the zoo's cases."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 512


def llama(**settings: Any) -> Any:
    """Two layers of hidden size 32, in evaluation mode; the same weights every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        **settings,
    )
    return LlamaForCausalLM(config).eval()


def prompts(count: int = 10, longest: int = 12) -> list[torch.Tensor]:
    """`count` prompts [1, N] of 4 to `longest` tokens, in no order of length."""
    chance = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, longest + 1, (count,), generator=chance).tolist()
    return [torch.randint(3, VOCABULARY, (1, length), generator=chance) for length in lengths]
