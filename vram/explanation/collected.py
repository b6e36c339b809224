"""Garbage in pieces: what only Python's collector frees of a sample, by line, module and category."""

from __future__ import annotations

from typing import Any

from vram.explanation.failures import attempt
from vram.explanation.pieces import NOT_ALIVE, pieces
from vram.explanation.traced import TracedRun, run_traced
from vram.explanation.tracer import tracer_for
from vram.recording import Recording
from vram.replaying.collector import cheap_collections
from vram.replaying.random_numbers import same_random_numbers
from vram.replaying.rerunnable import Rerunnable, rerunnable_of
from vram.summary.kept import Kept
from vram.units import format_bytes

_GONE = "the step or its samples are gone"
_OTHER = "sample {} makes most garbage, and the one with the highest peak ran again; --vram-breakdown runs both"


def garbage_sample(recording: Recording, rather: int = 0) -> int | None:
    """The sample that makes most garbage, `rather` where it does too; None where none does, or it was not measured."""
    by_sample = recording.garbage_by_sample
    if not any(by_sample):
        return None
    return rather if by_sample[rather] == max(by_sample) else by_sample.index(max(by_sample))


def garbage_of(recording: Recording, traced: TracedRun, sample: int) -> dict[str, Any]:
    """`{"garbage": ...}`, the recorded garbage of a sample in pieces (`vram.summary.kept`), from its traced run;
    `{"no_garbage": why}` where that made more than was recorded."""
    freed = traced.freed_by_collector()
    n_bytes = recording.garbage_by_sample[sample]
    untraced_bytes = n_bytes - sum(one.n_bytes for one in freed.values())
    if untraced_bytes < 0:
        more = format_bytes(-untraced_bytes)
        return {"no_garbage": f"sample {sample}, run again with tracing, made {more} more of it than was recorded"}
    untraced = NOT_ALIVE.format("recorded garbage") if untraced_bytes else ""
    made = tuple(pieces(freed, traced.categories))
    return {"garbage": Kept(n_bytes, 1, made, untraced_bytes, untraced, sample).to_json()}


def explained_garbage(recording: Recording) -> dict[str, Any]:
    """As `garbage_of`, from running the sample with most garbage once more. Raises nothing but KeyboardInterrupt."""
    rerunnable, sample = rerunnable_of(recording), garbage_sample(recording)
    if sample is None:
        return {}
    if rerunnable is None:
        return {"no_garbage": _GONE}
    made, error = attempt(lambda: garbage_of(recording, _run(rerunnable, sample), sample))
    return made or {"no_garbage": f"the lines are not known: run again, sample {sample} raised {error}"}


def garbage_of_another(recording: Recording) -> dict[str, Any]:
    """`{"no_garbage": why}` where the sample with most garbage is not the one that has run again, else nothing."""
    sample = garbage_sample(recording)
    if sample is None:
        return {}
    return {"no_garbage": _OTHER.format(sample)}


def _run(rerunnable: Rerunnable, sample: int) -> TracedRun:
    with cheap_collections(), tracer_for(rerunnable.device) as tracer, same_random_numbers():
        return run_traced(tracer, rerunnable, sample, 0)
