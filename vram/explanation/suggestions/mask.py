"""Finds copies of expanded tensors, such as a mask for every head, where every reader broadcasts by itself."""

from __future__ import annotations

from collections.abc import Iterator

from vram.explanation.suggestions.evidence import Evidence, Found
from vram.explanation.suggestions.uses import Use, View

_COPIES = ("aten.clone", "aten.contiguous", "aten.repeat")
# Views that an expanded tensor has too.
_VIEWS = {
    f"aten.{name}" for name in ("slice", "select", "detach", "alias", "unsqueeze", "expand", "transpose", "permute")
}
# Operations that take an expanded tensor as it is, by the arguments that may be one.
_BROADCAST = {
    **{f"aten.{name}": ("self", "other") for name in ("add", "sub", "mul", "logical_and", "logical_or", "bitwise_and")},
    **{f"aten.{name}_": ("other",) for name in ("add", "sub", "mul")},
    **{f"aten.{name}": ("mask",) for name in ("masked_fill", "masked_fill_")},
    "aten.where": ("condition", "self", "other"),
    "aten.scaled_dot_product_attention": ("attn_mask",),
    "aten._scaled_dot_product_flash_attention_for_cpu": ("attn_mask",),
    "aten._scaled_dot_product_efficient_attention": ("attn_bias",),
}


def expanded_mask(evidence: Evidence) -> Iterator[Found]:
    """A copy of an expanded tensor that is only read by operations that broadcast. The small one lives on instead."""
    for key, one in evidence.alive.items():
        use = evidence.untouched(key) if one.op in _COPIES else None
        if use is None or use.source is None or evidence.uses.backward:
            continue
        source, view = use.source
        copied, ends = _expanded(use, view, one.shape), evidence.instead(key, source)
        if copied is None or ends is None or not _broadcast(use):
            continue
        how = "pass it expanded, without the copy" if one.op != "aten.repeat" else "use `expand` in place of `repeat`"
        yield Found(
            f"{how}: {copied} is copied out to {list(one.shape)} ({one.line}), and what reads it broadcasts",
            sizes={key: 0},
            ends=ends,
        )


def _expanded(use: Use, view: View, shape: tuple[int, ...]) -> str | None:
    """Words for a tensor of which `shape` is a copy that repeats its elements; None where nothing is repeated."""
    small = tuple(1 if not stride else size for size, stride in zip(view.sizes, view.strides, strict=True))
    if use.maker == "aten.repeat":
        padded = (1,) * (len(shape) - len(view.sizes)) + view.sizes
        repeats_ones = all(old in (1, new) for old, new in zip(padded, shape, strict=True))
        return f"a tensor {list(view.sizes)}" if repeats_ones and padded != shape else None
    return f"a tensor {list(small)}" if small != view.sizes else None


def _broadcast(use: Use) -> bool:
    readers = all(view.argument in _BROADCAST.get(view.op, ()) for view in use.reads)
    return readers and set(use.views) <= _VIEWS
