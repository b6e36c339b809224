"""Finds the autograd graph of every sample, kept by what the step keeps of it: a loss that is appended or added up."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vram.explanation.suggestions.growth import FoundGrowth, GrowthEvidence

_BY_GRAPH, _OF = "autograd graph (", " of a tensor held by "


def graph_of_every_sample(evidence: GrowthEvidence) -> Iterator[FoundGrowth]:
    """Lines that a graph keeps, and what a lap of the same samples keeps that records none: a step that runs a backward
    pass raises there."""
    lines = [line for line in evidence.lines if line.holder.startswith(_BY_GRAPH) and _OF in line.holder]
    lap = evidence.lap_within(torch.no_grad()) if lines else None
    if lap is None or lap.backward:
        return
    saves_bytes = (evidence.kept_bytes - lap.kept_bytes) / evidence.samples
    holder = lines[0].holder.partition(_OF)[2].partition(", ")[0]
    text = (
        "run the step under `torch.no_grad()`, or keep `.detach()` or `.item()` of what it makes: the autograd graph "
        f"of every sample hangs on {holder}, and no backward pass runs"
    )
    yield FoundGrowth(text, saves_bytes, abs(saves_bytes - sum(line.rate for line in lines)) < 1)
