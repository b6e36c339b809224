"""A checkpoint as all layouts give it: config, tokenizer, image processor, and weights that are not loaded yet."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from transformers import GenerationConfig
from transformers.initialization import no_init_weights

from himap import HimapLlavaConfig, HimapLlavaForConditionalGeneration
from llava.errors import BadInput, shown
from llava.placement import Placement, check_device_map
from llava.quiet import quiet
from vram.replaying.out_of_memory import is_out_of_memory

T = TypeVar("T")


class Weights(Protocol):
    """Source of a model's weights."""

    def load(self, config: HimapLlavaConfig, placement: Placement) -> HimapLlavaForConditionalGeneration:
        """The model with these weights at `placement`. Raises BadInput where they are not the model's."""


@dataclass(frozen=True)
class Checkpoint:
    """A LLaVA checkpoint, its weights not loaded yet. `folder` is None where nothing of it is on disk.

    `pads_images`: its config says that images were padded to a square in training (`image_aspect_ratio`).
    `has_random_weights`: it is a preset.
    """

    folder: Path | None
    config: HimapLlavaConfig
    tokenizer: Any
    image_processor: Any
    weights: Weights
    pads_images: bool = False
    has_random_weights: bool = False

    @property
    def context_len(self) -> int:
        """The longest prompt the model takes, in tokens."""
        return int(self.config.text_config.max_position_embeddings)

    def load_model(self, placement: Placement) -> HimapLlavaForConditionalGeneration:
        """The model with its weights, in eval mode and without gradients. Raises BadInput where they do not fit it."""
        model = self.weights.load(self.config, placement)
        # The checkpoint's sampling defaults would only make `generate` warn: answers here are greedy.
        model.generation_config = GenerationConfig(
            eos_token_id=_first_set(model.generation_config.eos_token_id, self.tokenizer.eos_token_id),
            # Unset, `generate` would warn at every answer. One prompt at a time is never padded.
            pad_token_id=_first_set(self.tokenizer.pad_token_id, self.tokenizer.eos_token_id),
        )
        model.eval().requires_grad_(False)
        return model


def empty_model(
    config: HimapLlavaConfig,
    device: torch.device,
    *,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str = "sdpa",
) -> HimapLlavaForConditionalGeneration:
    """The model on `device` in `dtype`, its weights not set. On "meta" it takes no memory."""
    with torch.device(device), no_init_weights():
        model: HimapLlavaForConditionalGeneration = HimapLlavaForConditionalGeneration._from_config(
            copy.deepcopy(config), dtype=dtype, attn_implementation=attn_implementation
        )
        model.tie_weights()  # where the config ties them; `no_init_weights` leaves that out
    return model


def pretrained(
    folder: Path, config: HimapLlavaConfig, placement: Placement, source: Path | None, **options: Any
) -> HimapLlavaForConditionalGeneration:
    """The model that `from_pretrained(source, **options)` makes, placed. Raises BadInput, naming `folder`."""
    if placement.device_map is not None:
        check_device_map(placement.device_map, empty_model(config, torch.device("meta")))
    model: HimapLlavaForConditionalGeneration = reading(
        folder,
        "set of weights",
        lambda: HimapLlavaForConditionalGeneration.from_pretrained(
            source, config=config, local_files_only=True, **placement.options(), **options
        ),
    )
    placement.finish(model)
    return model


def reading(folder: Path, part: str, read: Callable[[], T]) -> T:
    """Result of `read()`. Raises BadInput, naming `part` and `folder`, for any error but running out of memory."""
    try:
        with quiet():
            return read()
    except BadInput:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, TypeError, its own and worse
        if isinstance(error, MemoryError) or is_out_of_memory(error):
            raise
        raise BadInput(
            f"a checkpoint must have a whole and fitting {part}, got {shown(str(folder))}: {first_line(error)}"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of `folder`. Raises BadInput where it is missing or no JSON object."""
    path = folder / "config.json"
    raw = reading(folder, "config.json", lambda: json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(raw, dict):
        raise BadInput(f"config.json must be a JSON object, got {shown(raw)} in {shown(str(folder))}")
    return raw


def check_model_type(folder: Path, raw: dict[str, Any], *model_types: str) -> None:
    """Raise BadInput unless config.json is of one of the `model_types`."""
    if raw.get("model_type") not in model_types:
        raise BadInput(
            f"config.json must be of model type {' or '.join(model_types)}, got {shown(raw.get('model_type'))} "
            f"in {shown(str(folder))}"
        )


def first_line(error: Exception) -> str:
    """First line of an exception's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _first_set(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
