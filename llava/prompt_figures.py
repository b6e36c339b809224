"""The cost of reading prompts in the mode that is on, by formula: needs no weights and no card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from transformers import LlamaConfig

from himap.flops import cache_bytes, flops_ratio, prefill_flops


def prompt_figures(config: LlamaConfig, dtype: torch.dtype, prompts: Sequence[Mapping[str, int]]) -> tuple[int, float]:
    """Bytes of keys and values after the largest of the prompts, and the average share of baseline's FLOPs.

    `config` is the decoder's, with the mode's flags; `prompts` have their tokens as `sys`, `img` and `text`.
    """
    caches = [cache_bytes(config, dtype, **each) for each in prompts]
    ratios = [flops_ratio(config, flops=prefill_flops, **each) for each in prompts]
    return max(caches), sum(ratios) / len(ratios)
