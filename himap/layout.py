"""Where padding and image stand in each row of a batch, found and checked before anything is removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from himap.frozen import check_cache, form
from himap.settings import CustomSettings, HimapSettings, Lengths, Settings


@dataclass(frozen=True)
class Row:
    """One prompt of a left-padded batch: its first real token is `start`; `image` is empty if nothing is to be done."""

    start: int
    image: range

    @property
    def image_tokens(self) -> int:
        """The image's length. `len(image)` and `bool(image)` fail in torch.compile where the bounds are symbols."""
        return self.image.stop - self.image.start


def row_starts(attention_mask: Tensor | None, batch: int, width: int) -> tuple[int, ...]:
    """The first real token of each row. Raises ValueError unless the mask is (batch, width), zeros then ones."""
    if attention_mask is None:
        return (0,) * batch
    if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 and bool(attention_mask.all()):
        return (
            0,
        ) * batch  # also where it is one step behind: as transformers reads it, it says that nothing is padding
    if not isinstance(attention_mask, Tensor) or attention_mask.shape != (batch, width):
        raise ValueError(f"the attention mask must have the tokens' shape {[batch, width]}, got {form(attention_mask)}")
    real = attention_mask.to(torch.bool)
    starts = width - real.sum(dim=1)
    if not torch.equal(real, torch.arange(width, device=real.device) >= starts[:, None]):
        raise ValueError("padding must stand on the left: every row of the attention mask must be zeros, then ones")
    return tuple(starts.tolist())


def image_rows(
    settings: Settings, starts: Sequence[int], width: int, image_mask: Tensor | None
) -> tuple[Row, ...] | None:
    """The rows of a prompt (batch, width) and their images, checked; None where no row has anything to do.

    Images come from `image_mask` (batch, width) bool, or else from the configured lengths. Raises ValueError for
    images in pieces or under padding, lengths that the mask contradicts, and (HiMAP, FastV) no text after the image.
    """
    if image_mask is None:
        images = _configured_images(settings.lengths, starts)
    else:
        images = _masked_images(settings.lengths, starts, image_mask)
    rows = []
    for start, image in zip(starts, images, strict=True):
        if isinstance(settings, CustomSettings):
            if settings.kept >= len(image) or width < image.stop:
                image = range(start, start)
        elif image and width <= image.stop:
            name = "HiMAP" if isinstance(settings, HimapSettings) else "FastV"
            raise ValueError(f"{name} needs text after the image: got {width} tokens, the image ends at {image.stop}")
        if image:
            settings.check_image(len(image))
        rows.append(Row(start, image))
    return tuple(rows) if any(row.image_tokens for row in rows) else None


def _configured_images(lengths: Lengths, starts: Sequence[int]) -> list[range]:
    if lengths.sys is None or lengths.img is None:
        raise ValueError(
            "without an image mask the system and image lengths must both be configured, "
            f"got {lengths.sys} and {lengths.img}"
        )
    return [range(start + lengths.sys, start + lengths.sys + lengths.img) for start in starts]


def _masked_images(lengths: Lengths, starts: Sequence[int], image_mask: Tensor) -> list[range]:
    found: list[list[int]] = [[] for _ in starts]
    for row, column in image_mask.nonzero().tolist():
        found[row].append(column)
    return [_span(columns, start, lengths) for columns, start in zip(found, starts, strict=True)]


def _span(columns: list[int], start: int, lengths: Lengths) -> range:
    """The image at ascending `columns` of a row whose padding ends at `start`."""
    if not columns:
        return range(start, start)
    image = range(columns[0], columns[-1] + 1)
    if len(columns) != len(image):
        raise ValueError(
            "a prompt must have one image and its tokens must be contiguous, "
            f"got {len(columns)} of them between {image[0]} and {image[-1]}"
        )
    if image.start < start:
        raise ValueError(
            f"the image must not stand under padding: it begins at {image.start}, the padding ends at {start}"
        )
    for name, configured, masked in (("system", lengths.sys, image.start - start), ("image", lengths.img, len(image))):
        if configured is not None and configured != masked:
            raise ValueError(f"the configured {name} length is {configured}, the prompt's is {masked}")
    return image


def rows_to_select(
    settings: Settings,
    config: LlamaConfig,
    tokens: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Any,
    seen: int,
    image_mask: Tensor | None,
) -> tuple[Row, ...] | None:
    """The rows of `tokens` (batch, tokens[, E]) where the mode has something to do; None where it has not.

    `seen` tokens came before them on the cache.
    """
    first_layer = settings.txt_layer if isinstance(settings, HimapSettings) else settings.agg_layer
    if first_layer >= config.num_hidden_layers:
        return None
    batch, width = tokens.shape[:2]
    if image_mask is not None:
        if image_mask.shape != (batch, width):
            raise ValueError(f"image_mask must have the tokens' shape {[batch, width]}, got {[*image_mask.shape]}")
        if not image_mask.any():
            return None
    if seen:  # what follows a prefill is text
        lengths = settings.lengths
        end = 0 if lengths.sys is None or lengths.img is None else lengths.sys + lengths.img
        if image_mask is not None or (width > 1 and seen < end):
            raise ValueError(f"the whole image must come with the first forward on a cache, got one with {seen} tokens")
        return None
    if past_key_values is not None:
        check_cache(past_key_values)
    return image_rows(settings, row_starts(attention_mask, batch, width), width, image_mask)


def cached_tokens(past_key_values: Any) -> int:
    """Tokens that the cache has room for already; 0 without one."""
    return 0 if past_key_values is None else int(past_key_values.get_seq_length())
