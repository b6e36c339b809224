"""Generation around a `Himap_LlamaModel`: one first index per `generate`; tokens dropped from a cache count as read."""

from __future__ import annotations

import inspect
import logging
import threading
from typing import Any

import torch

from himap.frozen import frozen_choice
from himap.settings import SWITCHES, active_settings

_log = logging.getLogger(__name__)


class FirstIndex:
    """The first farthest point, drawn from torch's global generator at most once per life."""

    def __init__(self) -> None:
        self._index: int | None = None

    def draw(self, count: int) -> int:
        """The index, below `count` when it is drawn."""
        if self._index is None:
            self._index = int(torch.randint(0, count, (1,)).item())
        return self._index


class Generating(threading.local):
    """State of the call that this thread is in.

    `first_index` is that of a `generate`, None outside of one. `whole_length` names an argument that counts tokens of
    the whole prompt, "" where none was given.
    """

    first_index: FirstIndex | None = None
    whole_length: str = ""

    def __reduce__(self) -> tuple[type[Generating], tuple[()]]:
        return type(self), ()  # a copied model is in none, and threading.local itself cannot be copied


class OneFirstIndexPerGenerate:
    """Mixin for models with a `Himap_LlamaModel` inside: `generate` draws custom selection's first index once."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """`PreTrainedModel.from_pretrained`; warns of a mode that is on because the checkpoint says so."""
        loaded = super().from_pretrained(*args, **kwargs)  # type: ignore[misc]
        config = (loaded[0] if isinstance(loaded, tuple) else loaded).get_decoder().config
        for switch in SWITCHES:
            if getattr(config, switch, False) and switch not in kwargs:
                _log.warning("the checkpoint was saved with %s on: image tokens are selected until it is off", switch)
        return loaded

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's `forward`, whose signature `generate` reads and which therefore stays as it is.

        Raises ValueError for `labels`, and for a tensor `logits_to_keep`, of a prompt from which tokens are removed.
        """
        given = inspect.signature(self.forward).bind_partial(*args).arguments if args else {}  # type: ignore[attr-defined]
        given |= kwargs
        counted = "labels" if given.get("labels") is not None else ""
        if isinstance(given.get("logits_to_keep"), torch.Tensor):
            counted = "a tensor logits_to_keep"
        state = self.get_decoder()._generating  # type: ignore[attr-defined]
        state.whole_length = counted
        try:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        finally:
            state.whole_length = ""

    def generate(self, inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """`GenerationMixin.generate`; with custom selection on, one first index for all of its forwards.

        Raises ValueError, while a mode is on, for what does not hand the whole prompt and nothing else to the first
        forward: chunked prefill and assisted generation.
        """
        decoder: Any = self.get_decoder()  # type: ignore[attr-defined]
        if active_settings(decoder.config) is None:
            return super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]
        config = generation_config or self.generation_config  # type: ignore[attr-defined]
        for name in ("prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_early_exit", "assistant_model"):
            value = kwargs.get(name, getattr(config, name, None))
            if value is not None:
                got = value if isinstance(value, int) else type(value).__name__
                raise ValueError(f"{name} must be None while image tokens are selected by the whole prompt, got {got}")
        with decoder.one_first_index():
            return super().generate(inputs, generation_config, *args, **kwargs)  # type: ignore[misc]

    def prepare_inputs_for_generation(
        self,
        input_ids: Any,
        *args: Any,
        past_key_values: Any = None,
        next_sequence_length: int | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> Any:
        """As `GenerationMixin`'s, but tokens dropped before the first layer count as read.

        There the cache's own length, by which `generate` finds what is new in a conversation, leaves them out.
        """
        frozen = frozen_choice(past_key_values)
        if frozen is not None and is_first_iteration and next_sequence_length is not None:
            next_sequence_length -= frozen.groups[0].removed
        return super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids,
            *args,
            past_key_values=past_key_values,
            next_sequence_length=next_sequence_length,
            is_first_iteration=is_first_iteration,
            **kwargs,
        )
