"""The choice that a prefill froze: kept with the KV cache, whose layers it left with different lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

_ATTRIBUTE = "himap_frozen"  # on the cache: what is copied, kept or dropped with it


@dataclass(frozen=True)
class Kept:
    """Image tokens the last forward kept: per row of the batch int64 indices relative to its image.

    None where that choice was not made; a row without an image has an empty tensor. `txt` and `img` ascend (HiMAP's two
    stages, both counted on the whole image), and so does `last` (FastV's). `selected` (custom selection's) is in
    selection order; a row whose image has no more tokens than are kept stays as it is and has an empty tensor.
    """

    txt: tuple[Tensor, ...] | None = None
    img: tuple[Tensor, ...] | None = None
    last: tuple[Tensor, ...] | None = None
    selected: tuple[Tensor, ...] | None = None


@dataclass(frozen=True)
class Group:
    """Layers from `first_layer` on: `removed` tokens shorter than the prompt; row r's padding ends at starts[r]."""

    first_layer: int
    removed: int
    starts: tuple[int, ...]

    def padding_mask(self, length: int, device: torch.device) -> Tensor | None:
        """(batch, length) bool, false at padding, for the first `length` tokens; None where there is none."""
        if not any(self.starts):
            return None
        return torch.arange(length, device=device) >= torch.tensor(self.starts, device=device)[:, None]


@dataclass(frozen=True)
class Frozen:
    """State that a pruned prefill, `width` tokens wide and with images that end at `image_end`, left in a cache.

    Row r of the prompt began at starts[r]. Rows belong to their prompts: a cache must not be reordered across prompts
    of different lengths (beam search does not).
    """

    width: int
    starts: tuple[int, ...]
    image_end: int
    groups: tuple[Group, ...]
    kept: Kept

    def seen(self, cache: Cache) -> int:
        """Tokens the cache has seen, those removed included."""
        return int(cache.get_seq_length(0)) + self.groups[0].removed

    def padding_masks(self, attention_mask: Tensor | None, seen: int, hidden: Tensor) -> list[Tensor | None]:
        """For each group (batch, cached + new tokens) bool, false at padding; None where there is none.

        `hidden` holds the new tokens; `attention_mask` (batch, seen + new) counts the whole prompt, as `generate` does.
        """
        batch, new = hidden.shape[:2]
        if any(any(group.starts) for group in self.groups) and len(self.starts) != batch:
            raise ValueError(f"the cache must hold the batch it was filled with, {len(self.starts)} rows, got {batch}")
        prompt = min(self.width, seen)  # less than the width after a crop
        later = None
        if attention_mask is not None:
            if not isinstance(attention_mask, Tensor) or attention_mask.shape != (batch, seen + new):
                raise ValueError(
                    f"the attention mask must have the shape of all tokens so far {[batch, seen + new]}, "
                    f"got {form(attention_mask)}"
                )
            later = attention_mask[:, prompt:].to(device=hidden.device, dtype=torch.bool)
            if bool(later.all()):
                later = None
        masks = []
        for group in self.groups:
            left = group.padding_mask(prompt - group.removed, hidden.device)
            if left is not None or later is not None:
                left = hidden.new_ones(batch, prompt - group.removed, dtype=torch.bool) if left is None else left
                ones = hidden.new_ones(batch, seen + new - prompt, dtype=torch.bool) if later is None else later
                left = torch.cat([left, ones], dim=1)
            masks.append(left)
        return masks


def freeze(cache: Cache, frozen: Frozen) -> None:
    """Keep `frozen` with `cache` for as long as that holds the prompt."""
    setattr(cache, _ATTRIBUTE, frozen)


def frozen_choice(cache: Any) -> Frozen | None:
    """State that a pruned prefill left in `cache`; None for no cache, one filled otherwise, and one emptied since.

    Raises ValueError where the cache was changed so that its layers no longer fit together.
    """
    frozen: Frozen | None = getattr(cache, _ATTRIBUTE, None)
    if frozen is None:
        return None
    if not any(cache.get_seq_length(layer) for layer in range(len(cache.layers))):
        delattr(cache, _ATTRIBUTE)  # `reset` empties the layers and leaves attributes behind
        return None
    seen = frozen.seen(cache)
    if seen < frozen.image_end:
        raise ValueError(
            f"a pruned cache must keep its image, which ends at token {frozen.image_end}, got one cropped to {seen}"
        )
    ends = [group.first_layer for group in frozen.groups[1:]] + [len(cache.layers)]
    for group, end in zip(frozen.groups, ends, strict=True):
        for layer in range(group.first_layer, end):
            if cache.get_seq_length(layer) != seen - group.removed:
                raise ValueError(
                    f"layer {layer} of a pruned cache must hold {seen - group.removed} of {seen} tokens, "
                    f"got {cache.get_seq_length(layer)}: crop it by a negative number, which every layer loses"
                )
    return frozen


def check_cache(cache: Any) -> None:
    """Raise ValueError unless the layers of `cache` grow one by one, as a DynamicCache's do."""
    layers = getattr(cache, "layers", None)
    if layers is None or any(not isinstance(layer, DynamicLayer) or layer.is_sliding for layer in layers):
        sliding = any(getattr(layer, "is_sliding", False) for layer in layers or ())
        got = f"{type(cache).__name__}{' with sliding layers' if sliding else ''}"
        raise ValueError(f"selecting image tokens needs a DynamicCache or none, got {got}")


def form(value: object) -> str:
    """The shape of a tensor, the type of anything else: for error messages."""
    return str([*value.shape]) if isinstance(value, Tensor) else type(value).__name__
