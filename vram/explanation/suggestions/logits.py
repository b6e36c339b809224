"""Finds logits of all positions that are made where only those of the last ones are read."""

from __future__ import annotations

from collections.abc import Iterator

from vram.explanation.suggestions.evidence import Evidence, Found
from vram.explanation.suggestions.uses import View


def full_logits(evidence: Evidence) -> Iterator[Found]:
    """Output of a model's own output embeddings [..., T, V], T > 1, of which all reads are of the last positions."""
    for key, (shape, keeps) in evidence.categories.logits.items():
        use = evidence.untouched(key) if key in evidence.alive and len(shape) > 1 else None
        if use is None or evidence.uses.backward:
            continue
        length, vocabulary = shape[-2:]
        n_bytes, row_bytes = evidence.curve.sizes[key], vocabulary * use.reads[0].dtype.itemsize
        kept = max(positions_kept(view, length, vocabulary) for view in use.reads)
        batch, rest = divmod(n_bytes, length * row_bytes)
        if not 0 < kept < length or rest:
            continue
        line = evidence.alive[key].line
        read = "the last alone is" if kept == 1 else f"the last {kept:,} alone are"
        how = f"pass `logits_to_keep={kept}` to the model" if keeps else "apply the output head to what is read alone"
        yield Found(
            f"{how}: logits of {length:,} positions are made ({line}), and {read} read",
            sizes={key: batch * kept * row_bytes},
            # The rows of several sequences lie apart, and may be copied on the way into the head.
            bound="" if batch == 1 else "up to ",
        )


def positions_kept(view: View, length: int, vocabulary: int) -> int:
    """How many of the last positions of each sequence in logits [..., length, vocabulary] a view reaches into."""
    sequence = length * vocabulary
    within = view.offset % sequence
    extent = sum(
        (size - 1) * step for size, step in zip(view.sizes, view.strides, strict=True) if size > 1 and step % sequence
    )
    return length - within // vocabulary if within + extent < sequence else length
