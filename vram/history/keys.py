"""Keys: the facts that must be equal for the figures of two runs to be compared."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeAlias

# (fact, value) pairs: what was measured first, then where.
Key: TypeAlias = tuple[tuple[str, str], ...]

NAMES = ("mode", "test")  # what was measured
# Facts of an environment (`vram.meters.environment`), without the Python version and which of several equal cards.
FACTS = ("source", "device", "compute_capability", "driver", "torch", "cuda", "hip", "allocator", "allocator_backend")
_ORDER = {fact: rank for rank, fact in enumerate((*NAMES, "samples", *FACTS, "platform"))}


def key_of(
    environment: Mapping[str, object],
    *,
    mode: str | None = None,
    test: str | None = None,
    samples: int | None = None,
    facts: Mapping[str, object] | None = None,
) -> Key:
    """The key of what `mode`, `test` or both name, measured in `environment`.

    `facts` are the project's own: model, dtype, attention. A fact that is None is no part of the key.
    """
    named = {"mode": mode, "test": test, "samples": samples, **(facts or {})}
    where = {fact: environment.get(fact) for fact in (*FACTS, "platform")}
    if where["source"] is not None:
        where["source"] = re.sub(r"\bcuda:\d+", "cuda", str(where["source"]))
    return canonical({**where, **named})


def canonical(facts: Mapping[str, object]) -> Key:
    """`facts` in one order, as text; the project's own after what was measured."""
    return _sorted(tuple((fact, str(value)) for fact, value in facts.items() if value is not None))


@lru_cache(maxsize=4096)  # the runs of a history have few keys
def _sorted(facts: Key) -> Key:
    rank = len(NAMES)
    return tuple(sorted(facts, key=lambda pair: (_ORDER.get(pair[0], rank), pair[0])))


def name_of(key: Key) -> str:
    """The name of what was measured: the mode, the test, or both."""
    facts = dict(key)
    return " ".join(facts[name] for name in reversed(NAMES) if name in facts)


def place_of(key: Key) -> str:
    """Where, on which model, over how many samples: the rest of the key."""
    return ", ".join(f"{fact} {value}" for fact, value in key if fact not in NAMES)


def environment_of(key: Key) -> Key:
    """The facts that say on which device and software it was measured, whichever meters were there to read it."""
    return tuple((fact, value) for fact, value in key if fact in (*FACTS[1:], "platform"))


def difference(key: Key, other: Key) -> str:
    """In which facts two keys differ: "torch 2.12.0 -> 2.13.0, driver none -> 570.1"."""
    before, now = dict(key), dict(other)
    facts = [fact for fact, _ in canonical({**before, **now})]
    return ", ".join(
        f"{fact} {before.get(fact, 'none')} -> {now.get(fact, 'none')}"
        for fact in facts
        if before.get(fact) != now.get(fact)
    )
