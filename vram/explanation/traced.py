"""One sample, run again with tracing: what was made where, and what only Python's collector freed of it."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch.nn import Module

from vram.explanation.allocations import Allocation, Event
from vram.explanation.categories import Categories
from vram.explanation.snapshot import viewer_snapshot
from vram.explanation.suggestions.uses import Uses
from vram.explanation.tracer import TensorTracer
from vram.replaying.garbage import is_automatic
from vram.replaying.marks import listening
from vram.replaying.rerunnable import Rerunnable


@dataclass(frozen=True)
class TracedRun:
    """A run of one sample. `collected` are the numbers of the allocations that only the collector freed.

    `ticks` are the marks that it reached, or without any the forwards of its model after the first: the length of the
    log then, and a name.
    """

    categories: Categories
    start: Mapping[int, Allocation]
    log: Sequence[Event]
    collected: frozenset[int]
    uses: Uses | None = None
    ticks: Sequence[tuple[int, str]] = ()

    @cached_property
    def known(self) -> Mapping[int, Allocation]:
        """Every allocation of the run, by number; what a log says of one that ends is less."""
        return dict(self.start) | {event.key: event.allocation for event in self.log if event.action == "alloc"}

    def freed_by_collector(self) -> dict[int, Allocation]:
        """Those allocations, by number."""
        return {key: self.known[key] for key in self.collected if self.known[key].n_bytes}

    def snapshot(self) -> dict[str, Any]:
        """The run for PyTorch's memory viewer: see `vram.explanation.snapshot`."""
        alive = dict(self.start)
        log = [event._replace(allocation=self.known[event.key]) for event in self.log if event.key in self.known]
        for event in log:
            if event.action == "alloc":
                alive[event.key] = event.allocation
            else:
                alive.pop(event.key, None)
        return viewer_snapshot(log, alive.items())


def run_traced(
    tracer: TensorTracer, rerunnable: Rerunnable, sample: int, run: int, *, owners: bool = True, uses: bool = False
) -> TracedRun:
    """Run a sample as `run` of the trace, and collect. Raises whatever the step raises.

    `owners`: look through all objects for the owners of storages, which takes some tenths of a second. `uses`: follow
    what each operation reads.
    """
    ticks = _Ticks(tracer)
    categories = tracer.categories = Categories(tracer.key_of, ticks.called)
    followed = Uses(tracer.key_of, lambda: len(tracer.log), lambda: categories.modules.here()[1]) if uses else None
    tracer.uses = followed
    with tracer.watching(run):
        collector = _Collector(tracer)
        with collector.following():
            with ExitStack() as stack:
                stack.enter_context(listening(ticks.reached))
                stack.enter_context(categories.following(rerunnable.samples[sample]))
                stack.enter_context(nullcontext() if followed is None else followed.following())
                result = rerunnable.step(rerunnable.samples[sample])  # kept until the step has surely returned
            del result
            if owners:
                categories.find_owners()
            collector.collect()
        log, ticked = list(tracer.log), ticks.named()
        return TracedRun(categories, tracer.start, log, frozenset(collector.freed), followed, ticked)


class _Ticks:
    """Where in a trace's log the sample reached its marks, and where its modules were called from outside."""

    def __init__(self, tracer: TensorTracer) -> None:
        self._tracer = tracer
        self._marks: list[tuple[int, str]] = []
        self._counts: Counter[str] = Counter()
        self._calls: dict[int, list[int]] = {}  # by id of the module, which is alive as long as the sample runs

    def reached(self, mark: str) -> None:
        """The sample reached a mark."""
        self._tracer.reached(mark)
        self._marks.append((len(self._tracer.log), f"{mark} {self._counts[mark]}"))
        self._counts[mark] += 1

    def called(self, module: Module) -> None:
        """A module is called, and not by another."""
        self._calls.setdefault(id(module), []).append(len(self._tracer.log))

    def named(self) -> list[tuple[int, str]]:
        """The marks; without any, calls of the module that is called most, from the second on."""
        most = max(self._calls.values(), key=len, default=[])
        return self._marks or [(at, f"forward {number}") for number, at in enumerate(most, 1) if number > 1]


class _Collector:
    """Finds in a trace's log what Python's collector frees, by itself or when it is called here.

    As in a replay, a call by the step itself is no garbage.
    """

    def __init__(self, tracer: TensorTracer) -> None:
        self._tracer = tracer
        self._begun: int | None = None  # of the log, when the collection that runs began
        self._called = False
        self.freed: set[int] = set()

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow all collections."""
        gc.callbacks.append(self._collects)
        try:
            yield
        finally:
            gc.callbacks.remove(self._collects)

    def collect(self) -> None:
        """Collect what is left over at the end."""
        self._called = True
        gc.collect()
        self._called = False

    def _collects(self, phase: str, info: Mapping[str, int]) -> None:
        if phase == "start":
            counts = self._called or is_automatic(info["generation"])
            self._begun = len(self._tracer.log) if counts else None
        elif self._begun is not None:
            events = self._tracer.log[self._begun :] if info["collected"] else ()
            self.freed.update(event.key for event in events if event.action == "free")
            self._begun = None
