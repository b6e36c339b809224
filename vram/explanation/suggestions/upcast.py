"""Finds float32 copies of half-precision tensors that are made before a choice which needs no float32."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vram.explanation.suggestions.evidence import Evidence, Found
from vram.explanation.suggestions.uses import Use

_CASTS = ("aten._to_copy", "aten.to")
_HALVES = (torch.float16, torch.bfloat16)
_PARTS = {"aten.select", "aten.slice", "aten.detach", "aten.alias", "aten.unsqueeze"}
_ORDER = ("aten.argmax", "aten.argmin")  # float32 holds each value of a half: their order is the same


def upcast(evidence: Evidence) -> Iterator[Found]:
    """A float32 copy of which only a part is read, or of which only the order of its elements is."""
    for key, one in evidence.alive.items():
        use = evidence.untouched(key) if one.op in _CASTS and one.dtype == "float32" else None
        if use is None or use.source is None or use.source[1].dtype not in _HALVES or evidence.uses.backward:
            continue
        half = str(use.source[1].dtype).removeprefix("torch.")
        copied = f"{half} {list(one.shape)} is copied to float32 as a whole ({one.line})"
        if all(view.op in _ORDER for view in use.reads):
            op = use.reads[0].op.removeprefix("aten.")
            text = f"take `{op}` of the {half} tensor itself: {copied}, and only the order is read"
            ends = evidence.instead(key, use.source[0])
            if ends is not None:
                yield Found(text, sizes={key: 0}, ends=ends)
            continue
        n_bytes = _part_bytes(use, evidence.curve.sizes[key])
        if n_bytes is not None:
            text = f"take the part that is read first, then make it float32: {copied}, and {n_bytes:,} B of it are read"
            yield Found(text, sizes={key: n_bytes})


def _part_bytes(use: Use, whole_bytes: int) -> int | None:
    """Bytes of the one part that all operations read, in one piece; None where they read more."""
    parts = {(view.offset, view.end, view.n_bytes) for view in use.reads}
    if len(parts) != 1 or not set(use.views) <= _PARTS:
        return None
    begin, end, n_bytes = next(iter(parts))
    in_one_piece = (end - begin) * 4 == n_bytes
    return n_bytes if in_one_piece and n_bytes < whole_bytes else None
