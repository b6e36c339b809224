"""Ways out of a peak, and of growth, for patterns that are certain: one sentence each, and the bytes that it saves.

A pattern is one file with a function from `Evidence` to `Found` and one line of PATTERNS, or from `GrowthEvidence` to
`FoundGrowth` and one line of OF_GROWTH. It finds nothing where it is not certain: a wrong suggestion is much worse than
none. A suggestion never changes a verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vram.explanation.suggestions.attentions import attentions_returned
from vram.explanation.suggestions.evidence import LEAST_SHARE, Bound, Evidence, Found
from vram.explanation.suggestions.graph import graph_kept
from vram.explanation.suggestions.graphs import graph_of_every_sample
from vram.explanation.suggestions.growth import FoundGrowth, GrowthEvidence
from vram.explanation.suggestions.logits import full_logits
from vram.explanation.suggestions.mask import expanded_mask
from vram.explanation.suggestions.previous import previous_output
from vram.explanation.suggestions.requests import cache_of_every_request
from vram.explanation.suggestions.upcast import upcast
from vram.text import rate_text
from vram.units import format_bytes

PATTERNS: Mapping[str, Callable[[Evidence], Iterable[Found]]] = {
    "full logits": full_logits,
    "float32 copy": upcast,
    "expanded mask": expanded_mask,
    "graph kept": graph_kept,
    "previous output": previous_output,
    "attentions returned": attentions_returned,
}
OF_GROWTH: Mapping[str, Callable[[GrowthEvidence], Iterable[FoundGrowth]]] = {
    "cache of every request": cache_of_every_request,
    "graph of every sample": graph_of_every_sample,
}


class NotFollowed(Exception):
    """Says why what a run did with its storages is not known."""


def suggestions(evidence: Evidence, sample: int, *, exact: bool) -> list[dict[str, Any]]:
    """`[{"pattern", "text", "saves_bytes"}]`, most bytes first; each saves that of the sample's peak by itself.

    `exact`: the traced peak is the recorded one to the byte. Otherwise a figure is the most that it may be, or about
    right where the sample ran once more.
    """
    if evidence.uses.failure:
        raise NotFollowed(evidence.uses.failure)
    made = []
    for pattern, find in PATTERNS.items():
        for found in find(evidence):
            n_bytes, bound = _saving(evidence, found, exact)
            if n_bytes > 0 and n_bytes * LEAST_SHARE >= evidence.own_bytes:
                less = f"{bound}{n_bytes:,} B ({format_bytes(n_bytes)}) less at the peak of sample {sample}"
                text = f"{less}: {found.text}"
                made.append({"pattern": pattern, "text": text, "saves_bytes": n_bytes})
    if made and evidence.uses.unseen:
        raise NotFollowed(evidence.uses.unseen)
    return sorted(made, key=lambda one: -one["saves_bytes"])


def suggestions_of_growth(evidence: GrowthEvidence) -> list[dict[str, Any]]:
    """`[{"pattern", "text", "saves_bytes_per_sample"}]`, most bytes first; each saves that by itself."""
    made = []
    whole = sum(line.rate for line in evidence.lines)
    for pattern, find in OF_GROWTH.items():
        for found in find(evidence):
            if found.saves_bytes > 0 and found.saves_bytes * LEAST_SHARE >= whole:
                text = f"{'' if found.exact else 'about '}{rate_text(found.saves_bytes)} a sample less: {found.text}"
                made.append({"pattern": pattern, "text": text, "saves_bytes_per_sample": found.saves_bytes})
    return sorted(made, key=lambda one: -one["saves_bytes_per_sample"])


def _saving(evidence: Evidence, found: Found, exact: bool) -> tuple[int, Bound]:
    """Bytes that the peak falls by, and whether that is exact."""
    if found.saves_bytes is not None:
        return found.saves_bytes, "" if exact else "about "
    if exact:
        return evidence.curve.peak_bytes - evidence.curve.peak_with(found.sizes, found.ends), found.bound
    # Blocks that are no tensor's may make another moment the highest; more than what goes can't be saved.
    gone = {key: 0 for key, end in found.ends.items() if end < evidence.curve.peak_at} | dict(found.sizes)
    sizes = evidence.curve.sizes
    return sum(sizes[key] - left for key, left in gone.items() if key in evidence.alive), "up to "
