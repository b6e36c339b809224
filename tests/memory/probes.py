"""Probes while a sample runs: operations, functions entered, bytes per token."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import himap
from vram import Recording
from vram.torch_hooks.dispatch import DispatchMode

# Code of ours that a model runs with every mode off: the door, and the look at flags, cache and arguments that count
# tokens.
_DOOR = {
    ("decoder.py", "forward"),
    ("generation.py", "__call__"),
    ("generation.py", "generate"),
    ("generation.py", "prepare_inputs_for_generation"),
    ("frozen.py", "frozen_choice"),
    ("multimodal.py", "forward"),
    ("multimodal.py", "read"),
    ("settings.py", "active_settings"),
    ("settings.py", "any_mode_on"),
}


class AttentionProbe(DispatchMode):
    """Operations inside one decoder: the largest softmax result in bytes, and every square map of the sequence.

    A square map is a new storage whose last two sizes are both the number of tokens the decoder was given.
    """

    def __init__(self, decoder: torch.nn.Module) -> None:
        super().__init__()
        self.softmax_peak_bytes = 0
        self.squares: list[str] = []
        self.longest = 0
        self._decoder = decoder
        self._tokens = 0  # 0: outside the decoder

    @contextmanager
    def watching(self) -> Iterator[None]:
        def enter(_module: object, _args: object, kwargs: dict[str, Any]) -> None:
            self._tokens = kwargs["inputs_embeds"].shape[1]
            self.longest = max(self.longest, self._tokens)

        def leave(*_: object) -> None:
            self._tokens = 0

        hooks = [
            self._decoder.register_forward_pre_hook(enter, with_kwargs=True),
            self._decoder.register_forward_hook(leave),
        ]
        try:
            with self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._tokens > 1:
            for value in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(value, torch.Tensor):
                    self._look(func, value)
        return result

    def _look(self, func: Any, value: torch.Tensor) -> None:
        if "softmax" in func._schema.name and math.prod(value.shape):
            self.softmax_peak_bytes = max(self.softmax_peak_bytes, value.untyped_storage().nbytes())
        if value.dim() >= 2 and tuple(value.shape[-2:]) == (self._tokens, self._tokens):
            self.squares.append(f"{func._schema.name} {tuple(value.shape)} {value.dtype}")


@contextmanager
def entered_code() -> Iterator[set[str]]:
    """Functions of himap entered inside the block beyond the door, "file:function" each. Seen, not inferred."""
    home, entered = str(Path(himap.__file__).parent), set[str]()

    def profile(frame: Any, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(home):
            place = (Path(code.co_filename).name, code.co_name)
            if place not in _DOOR:
                entered.add(":".join(place))

    outer = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield entered
    finally:
        sys.setprofile(outer)


def assert_tokens_cost(recording: Recording, cache_bytes: int, slack_bytes: int = 32) -> None:
    """Every token from the second on adds `cache_bytes` and at most `slack_bytes` of ids and mask, on every sample.

    Raises AssertionError naming lap, sample and token, with the bytes.
    """
    looked_at = 0
    for lap, by_sample in enumerate(recording.marks["token"]["requested"]):
        for sample, readings in enumerate(by_sample):
            steps = np.diff(readings)[1:]  # the first token's step is from prefill to decode
            over = np.flatnonzero((steps < cache_bytes) | (steps > cache_bytes + slack_bytes))
            looked_at += steps.size
            if over.size:
                token = int(over[0]) + 2
                raise AssertionError(
                    f"{recording.name}: token {token} of sample {sample}, lap {lap}, adds {steps[over[0]]:,} B; "
                    f"allowed are {cache_bytes:,} B of KV cache and {slack_bytes} B of ids and mask"
                )
    assert looked_at > 0, f"{recording.name}: no answer was long enough to judge"


def cache_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Keys and values of one token in every layer."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * dtype.itemsize)
