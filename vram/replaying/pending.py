"""Results that stand for work which has not run, a generator's or a coroutine's: refused, as nothing was measured."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterable
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from vram.replaying.rerunnable import name_of, step_name

# Returned by a call at once, before it has done any of its work: what it is, and how a step gets that work done. Other
# iterators may well be results, a model's output among them; they, and containers, are looked into.
_PENDING: dict[type, tuple[str, str]] = {
    GeneratorType: ("a generator", "list({step}(sample))"),
    CoroutineType: ("a coroutine", "asyncio.run({step}(sample))"),
    AsyncGeneratorType: ("an async generator", "asyncio.run(consume({step}(sample)))"),
    map: ("a map object", "list({step}(sample))"),
    filter: ("a filter object", "list({step}(sample))"),
}
_ITERATORS = (
    zip,
    enumerate,
    *map(type, (iter(()), iter([]), iter({}.values()))),
    *(kind for kind in vars(itertools).values() if isinstance(kind, type)),
)
_CONTAINERS = (tuple, list, dict, set, frozenset)
# Objects of one result: a batch of generators is noticed, and a list of a million tokens costs no time.
_MOST_LOOKED_AT = 1000
_STATES = {GeneratorType: "gi", CoroutineType: "cr", AsyncGeneratorType: "ag"}  # prefixes of their attributes


def refuse_pending(step: Callable[..., object], result: object) -> None:
    """Raise TypeError where `result`, or something in it, is work that has not run."""
    pending = _pending(result)
    if pending is None:
        return
    if isinstance(pending, CoroutineType):
        pending.close()  # else Python warns that it was never awaited
    what, how = _PENDING[type(pending)]
    name = step_name(step).rpartition(".")[2]
    consumed = how.format(step=name if name.isidentifier() else "work")
    advice = f"consume it inside the step, as in `lambda sample: {consumed}`"
    if pending is not result:
        what, advice = f"{what} within a result of type {type(result).__name__}", "consume it inside the step"
    raise TypeError(
        f"step must do its work before it returns, got {what} from {name_of(step)}: its work has not run and would not "
        f"be measured; {advice}"
    )


def _pending(result: object) -> Any:
    """The first part of `result` that is work nobody has begun, or `result` itself where it is work; else None."""
    if type(result) in _PENDING:
        return result
    looked_at: list[Any] = [result]
    for value in looked_at:
        kind = type(value)
        if kind in _PENDING and not _begun(value):
            return value
        parts: Iterable[object] = ()
        if kind in _CONTAINERS:
            parts = value.values() if kind is dict else value
        elif kind in _ITERATORS:
            parts = gc.get_referents(value)
        looked_at += itertools.islice(parts, max(0, _MOST_LOOKED_AT - len(looked_at)))
    return None


def _begun(work: Any) -> bool:
    """Whether a generator or a coroutine is under way, or over."""
    prefix = _STATES.get(type(work))
    if prefix is None:
        return False
    over = getattr(work, f"{prefix}_frame") is None
    return over or any(getattr(work, f"{prefix}_{state}", False) for state in ("running", "suspended"))
