"""Suggestions for the sample that was traced: its run followed, its evidence gathered."""

from __future__ import annotations

import gc
from contextlib import AbstractContextManager
from typing import Any

from vram.explanation.failures import attempt
from vram.explanation.suggestions import suggestions
from vram.explanation.suggestions.evidence import Curve, Evidence
from vram.explanation.traced import TracedRun
from vram.explanation.tracer import TensorTracer
from vram.recording import Recording
from vram.replaying.rerunnable import Rerunnable


def suggested(
    tracer: TensorTracer, traced: TracedRun, rerunnable: Rerunnable, recording: Recording, sample: int
) -> dict[str, Any]:
    """`{"suggestions": [...]}` for the run of `sample` that was just traced, or `{"no_suggestions": why}`.

    Empty where nothing is certain, as where the traced peak is not the recorded one. On a card, where the allocator has
    blocks that are no tensor's, a figure is the most that it may be. Raises nothing but KeyboardInterrupt.
    """
    uses = traced.uses
    if uses is None or "requested_peak" not in recording.channels:
        return {}

    def found() -> list[dict[str, Any]]:
        curve, log = Curve(traced.start.items(), traced.log), list(traced.log)
        exact = rerunnable.device.partition(":")[0] in ("cpu", "simulated")
        recorded_bytes = int(recording.channels["requested_peak"][:, sample].max())
        if curve.peak_bytes > recorded_bytes or (exact and curve.peak_bytes != recorded_bytes):
            return []

        def peak_within(context: AbstractContextManager[object]) -> int | None:
            return attempt(lambda: _peak_within(context, tracer, rerunnable, sample))[0]

        evidence = Evidence(tracer.keyed_at_peak(), curve, uses, traced.categories, log, peak_within)
        return suggestions(evidence, sample, exact=exact)

    made, failure = attempt(found)
    return {"suggestions": made} if made else {"no_suggestions": failure} if failure else {}


def _peak_within(
    context: AbstractContextManager[object], tracer: TensorTracer, rerunnable: Rerunnable, sample: int
) -> int:
    """The traced peak of the sample, run once more within `context`."""
    tracer.uses = tracer.categories = None
    gc.collect()
    with tracer.watching(0), context:
        rerunnable.step(rerunnable.samples[sample])
    return Curve(tracer.start.items(), tracer.log).peak_bytes
