"""A language model of random weights, and answers of a fixed length from it."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = LlamaConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    bos_token_id=None,
    eos_token_id=None,
)


def load() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval()


def answer(model: LlamaForCausalLM, prompt: list[int], new_tokens: int, streamer=None) -> torch.Tensor:
    """The prompt and `new_tokens` more; `streamer` sees each of them."""
    return model.generate(
        torch.tensor([prompt]), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, streamer=streamer
    )
