"""Finds autograd's graph of a step that runs no backward pass and leaves nothing to run one on."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vram.explanation.suggestions.evidence import Evidence, Found


def graph_kept(evidence: Evidence) -> Iterator[Found]:
    """A graph that was recorded and ended within the step, and the peak of the same sample without one."""
    uses = evidence.uses
    if not uses.recorded or uses.backward or uses.graph_left:
        return
    peak_bytes = evidence.peak_within(torch.no_grad())
    if peak_bytes is None:
        return
    text = (
        "run the step under `torch.no_grad()`: autograd records a graph, no backward pass runs, and nothing is "
        "returned or kept that one could run on"
    )
    yield Found(text, saves_bytes=evidence.curve.peak_bytes - peak_bytes)
