"""Suggestions for the sample that was traced, or for what grows in laps: the runs followed, the evidence gathered."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

from vram.explanation.failures import attempt
from vram.explanation.retained import Names
from vram.explanation.suggestions import NotFollowed, suggestions, suggestions_of_growth
from vram.explanation.suggestions.evidence import Curve, Evidence
from vram.explanation.suggestions.growth import GrownLine, GrowthEvidence, Lap
from vram.explanation.traced import TracedRun, run_traced
from vram.explanation.tracer import TensorTracer
from vram.recording import Recording
from vram.replaying.collector import cheap_collections
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
            # A run that is not like the one before says nothing of what is changed in it.
            return attempt(lambda: _peak_within(context, tracer, rerunnable, sample))[0] if again() else None

        @cache
        def again() -> bool:
            unchanged = nullcontext()
            return attempt(lambda: _peak_within(unchanged, tracer, rerunnable, sample))[0] == curve.peak_bytes

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


def suggested_for_growth(
    tracer: TensorTracer, rerunnable: Rerunnable, lines: Sequence[GrownLine], names: Names, runs: int, kept_bytes: int
) -> dict[str, Any]:
    """`{"suggestions": [...]}` for lines that grew in the `runs` traced, or `{"no_suggestions": why}`.

    `kept_bytes` are those of the last lap. Runs the samples again where a pattern needs it. Raises nothing but
    KeyboardInterrupt.
    """
    begun = runs

    def lap_within(context: AbstractContextManager[object]) -> Lap | None:
        nonlocal begun
        first, begun = begun, begun + len(rerunnable.samples)
        with cheap_collections(), context:
            return _lap(tracer, rerunnable, first)

    evidence = GrowthEvidence(
        lines, len(rerunnable.samples), kept_bytes, lambda one: names.of(one)[1], tracer.living_storages, lap_within
    )
    made, failure = attempt(lambda: suggestions_of_growth(evidence))
    return {"suggestions": made} if made else {"no_suggestions": failure} if failure else {}


def _lap(tracer: TensorTracer, rerunnable: Rerunnable, first: int) -> Lap | None:
    """A lap whose runs are numbered from `first` on; None where a sample raises."""
    read: set[int] = set()
    recorded = backward = False
    for index in range(len(rerunnable.samples)):
        run = partial(run_traced, tracer, rerunnable, index, first + index, owners=False, uses=True)
        traced, _ = attempt(run)
        if traced is None or traced.uses is None:
            return None
        if traced.uses.failure or traced.uses.unseen:
            raise NotFollowed(traced.uses.failure or traced.uses.unseen)
        read |= {id(traced.start[key]) for key, use in traced.uses.items() if use.seen and key in traced.start}
        recorded, backward = recorded or traced.uses.recorded, backward or traced.uses.backward
    kept_bytes = sum(one.n_bytes for _, one in tracer.living_storages() if one.run >= first)
    return Lap(kept_bytes, frozenset(read), recorded, backward)
