"""Replaying the same samples in laps, reading every meter after each, until the rule has what it needs."""

from __future__ import annotations

import gc
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from numbers import Integral
from operator import methodcaller
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any, TypeVar

import numpy as np

from vram.errors import OutOfMemory
from vram.meters import Meter, default_meters
from vram.recording import MarkReadings, Recording, judged_figures
from vram.replaying.collector import cheap_collections
from vram.replaying.marks import listening
from vram.verdict.growth import Verdict, judge_growth

Sample = TypeVar("Sample")
DEFAULT_LAPS = 5

# What a call returns at once, before it has done any of its work: what it is, and how a step gets that work done. Other
# iterators may well be results, a model's output among them; they, and containers, are looked into.
_PENDING: dict[type, tuple[str, str]] = {
    GeneratorType: ("a generator", "list({step}(sample))"),
    CoroutineType: ("a coroutine", "asyncio.run({step}(sample))"),
    AsyncGeneratorType: ("an async generator", "asyncio.run(consume({step}(sample)))"),
    map: ("a map object", "list({step}(sample))"),
    filter: ("a filter object", "list({step}(sample))"),
}
_LOOKED_INTO = (
    zip,
    enumerate,
    *map(type, (iter(()), iter([]), iter({}.values()))),
    *(kind for kind in vars(itertools).values() if isinstance(kind, type)),
)
_CONTAINERS = (tuple, list, dict, set, frozenset)
# Objects of one result: a batch of generators is found, and a list of a million tokens costs no time.
_MOST_LOOKED_AT = 1000
# name -> channel -> lap -> sample -> readings
_Marks = dict[str, dict[str, list[list[list[int]]]]]


@dataclass(frozen=True, eq=False)
class Replayed:
    """What a recording was made of: enough to run it again, on the device it was measured on ("cpu", "cuda:1")."""

    step: Callable[[Any], object]
    samples: list[Any]
    device: str


# pytest then shows the test's own line, and not how a sample was replayed; other errors of a step keep every frame.
hidden_on_oom = methodcaller("errisinstance", OutOfMemory)


def replayed(recording: Recording) -> Replayed | None:
    """What `recording` was made of; None where `replay` did not make it, or it was forgotten."""
    return vars(recording).get("_made_of")


def forget(recording: Recording) -> None:
    """Let go of the step and the samples of `recording`."""
    vars(recording).pop("_made_of", None)


def _remember(recording: Recording, made_of: Replayed) -> None:
    # On the recording itself, not in a table of ours: what a step holds may hold the recording, and both then end.
    vars(recording)["_made_of"] = made_of


def replay(
    step: Callable[[Sample], object],
    samples: Iterable[Sample],
    *,
    laps: int | None = None,
    warmup_laps: int = 1,
    meters: Sequence[Meter] | None = None,
    name: str | None = None,
) -> Recording:
    """Run `step` on every sample, lap after lap, and return all readings.

    `laps` (5 unless told otherwise, warm-up included) is where the first look is taken; where an exact channel, or
    the driver's, looks suspicious, laps are added before this returns, up to what `vram.verdict.growth` asks for.
    `laps=1` is for peaks alone, with no verdict on growth. After each step the result is dropped, garbage collected,
    the device waited for and every meter read. Nothing that `step` made is kept.

    Raises ValueError for no samples or too few laps; TypeError for arguments of a wrong type, and where `step` returns
    work that is yet to be done (a generator, a coroutine, an async generator, a map or a filter, or a container or an
    iterator of such); OutOfMemory (with sample, line and bytes) where a step runs out of memory; any other exception of
    `step` comes through unchanged.
    """
    __tracebackhide__ = hidden_on_oom
    lap_samples = _checked(step, samples, laps, warmup_laps)
    base_laps = DEFAULT_LAPS if laps is None else laps
    if not lap_samples:
        raise ValueError("samples must hold at least one sample, got none")
    if base_laps == 1:
        warmup_laps = 0
    elif warmup_laps < 0 or base_laps < warmup_laps + 2:
        least = max(warmup_laps, 0) + 2
        raise ValueError(f"laps must be at least {least} (warm-up + 2), or 1 for peaks alone, got {base_laps}")
    used = list(meters or default_meters())
    made_of = Replayed(step, lap_samples, _device_of(used))
    failure = None
    try:
        recording = _replay(made_of, used, base_laps, warmup_laps, name or name_of(step))
    except OutOfMemory as error:
        failure = error
    if failure is not None:  # raised out here, no exception that is being handled holds the frames
        from vram.replaying.out_of_memory import with_what_was_alive

        raise with_what_was_alive(failure, made_of)
    _remember(recording, made_of)
    return recording


def _checked(
    step: Callable[[Sample], object], samples: Iterable[Sample], laps: object, warmup_laps: object
) -> list[Sample]:
    """The samples. Raises TypeError for what is none of what `replay` takes."""
    if not callable(step):
        raise TypeError(f"step must be a function that takes a sample, got {step!r}")
    for name, value in (("laps", laps), ("warmup_laps", warmup_laps)):
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole and not (value is None and name == "laps"):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
    try:
        each = iter(samples)
    except TypeError:
        raise TypeError(f"samples must be a list, or something else to go through, got {samples!r}") from None
    return list(each)


def _replay(made_of: Replayed, meters: list[Meter], base_laps: int, warmup_laps: int, name: str) -> Recording:
    with ExitStack() as stack:
        used = [stack.enter_context(meter) for meter in meters]
        stack.enter_context(cheap_collections())
        loop = _Loop(made_of.step, made_of.samples, used)
        wanted: int | None = base_laps
        while wanted is not None:
            while loop.laps < wanted:
                loop.run_lap()
            asked = (loop.laps_wanted(channel, warmup_laps, base_laps) for channel in loop.channels)
            wanted = max(asked, default=0) or None if base_laps > 1 else None
        return loop.recording(name, warmup_laps, base_laps)


def _device_of(meters: Sequence[Meter]) -> str:
    """Where tensors are followed when the samples run again: on the device that decides."""
    return next((meter.device for meter in meters if meter.exact), "cpu")


class _Loop:
    """Readings in the making: plain lists of ints, so that they weigh nothing in what they measure."""

    def __init__(self, step: Callable[[Any], object], samples: list[Any], meters: list[Meter]) -> None:
        from vram.meters.environment import environment

        self.step, self.samples, self.meters = step, samples, meters
        self.environment = environment(meters)
        self.figures: dict[str, list[list[int]]] = defaultdict(list)
        self.seconds: list[list[float]] = []
        self.marks: _Marks = {}
        self.before = self._settled_reading()
        self.lost: set[str] = set()  # channels that a meter stopped trusting

    @property
    def channels(self) -> list[str]:
        return [channel for channel in self.before if channel not in self.lost]

    @property
    def exact(self) -> frozenset[str]:
        return frozenset[str]().union(*(meter.exact for meter in self.meters)).intersection(self.channels)

    @property
    def deciding(self) -> frozenset[str]:
        """The exact channels, and the driver's, where it is this process's own."""
        return self.exact | {"driver"}.intersection(self.channels)

    @property
    def tolerance_bytes(self) -> dict[str, int]:
        return {channel: value for meter in self.meters for channel, value in meter.tolerance_bytes.items()}

    @property
    def laps(self) -> int:
        return len(self.seconds)

    def judge(self, channel: str, warmup_laps: int, base_laps: int) -> Verdict:
        figures = judged_figures({channel: self.readings(channel) for channel in self.channels}, channel)
        tolerance_bytes = self.tolerance_bytes.get(channel, 0)
        return judge_growth(figures, warmup_laps=warmup_laps, base_laps=base_laps, tolerance_bytes=tolerance_bytes)

    def laps_wanted(self, channel: str, warmup_laps: int, base_laps: int) -> int:
        """Laps that the rule asks for; 0 for enough. For a noisy channel it asks only where every lap rose."""
        verdict = self.judge(channel, warmup_laps, base_laps)
        rose_always = verdict.rises == verdict.laps - warmup_laps - 1
        return verdict.laps_wanted or 0 if channel in self.deciding or rose_always else 0

    def readings(self, channel: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array(self.figures[channel], dtype=np.int64)

    def run_lap(self) -> None:
        self.seconds.append([])
        for channel in self.before:
            self.figures[channel].append([])
        for index in range(len(self.samples)):
            self._run_sample(index)
            reading = self._settled_reading()
            self.lost |= self.before.keys() - reading.keys()
            for channel in self.channels:
                self.figures[channel][-1].append(reading[channel])

    def _run_sample(self, index: int) -> None:
        for meter in self.meters:
            meter.reset_peak()
        failure = None
        begin = time.perf_counter()
        try:
            with ExitStack() as stack:
                for meter in self.meters:
                    stack.enter_context(meter.watching())
                stack.enter_context(listening(lambda name: self._read_mark(name, index)))
                _refuse_pending(self.step, self.step(self.samples[index]))
            for meter in self.meters:
                meter.synchronize()
        except Exception as error:
            failure = _out_of_memory(error, self.laps - 1, index, self._reading)
            if failure is None:
                raise
        if failure is not None:  # raised out here, it does not carry the first error and the frames that hold tensors
            raise failure
        self.seconds[-1].append(time.perf_counter() - begin)

    def _settled_reading(self) -> dict[str, int]:
        gc.collect()
        for meter in self.meters:
            meter.synchronize()
        return self._reading()

    def _reading(self, *, cheap: bool = False) -> dict[str, int]:
        # Cheap: without the noisy meters, which cost a call to the driver and mean nothing within a sample.
        meters = [meter for meter in self.meters if meter.exact or not cheap]
        return {channel: value for meter in meters for channel, value in meter.read().items()}

    def _read_mark(self, name: str, index: int) -> None:
        for channel, value in self._reading(cheap=True).items():
            by_lap = self.marks.setdefault(name, {}).setdefault(channel, [])
            while len(by_lap) < self.laps:  # a mark may be reached for the first time in a late lap
                by_lap.append([[] for _ in self.samples])
            by_lap[-1][index].append(value)

    def recording(self, name: str, warmup_laps: int, base_laps: int) -> Recording:
        channels = self.channels
        return Recording(
            name=name,
            channels={channel: self.readings(channel) for channel in channels},
            before={channel: self.before[channel] for channel in channels},
            exact=self.exact,
            tolerance_bytes=self.tolerance_bytes,
            absent={key: why for meter in self.meters for key, why in meter.absent.items() if key not in channels},
            marks={
                mark: {channel: self._frozen_marks(by_lap) for channel, by_lap in by_channel.items()}
                for mark, by_channel in self.marks.items()
            },
            environment=self.environment,
            seconds=np.array(self.seconds, dtype=np.float64),
            warmup_laps=warmup_laps,
            base_laps=base_laps,
        )

    def _frozen_marks(self, by_lap: list[list[list[int]]]) -> MarkReadings:
        empty: list[list[int]] = [[] for _ in self.samples]
        padded = [*by_lap, *([empty] * (self.laps - len(by_lap)))]
        return tuple(tuple(np.array(readings, dtype=np.int64) for readings in lap) for lap in padded)


def _out_of_memory(
    error: Exception, lap: int, sample: int, reading: Callable[[], dict[str, int]]
) -> OutOfMemory | None:
    from vram.replaying.out_of_memory import describe, failing_line, is_out_of_memory, requested_bytes, room

    if not is_out_of_memory(error):
        return None
    lines = [describe(error, lap, sample), *(f"  {line}" for line in room(error, reading()))]
    return OutOfMemory(
        "\n".join(lines),
        lap=lap,
        sample=sample,
        requested_bytes=requested_bytes(error),
        line=failing_line(error),
    )


def _refuse_pending(step: Callable[..., object], result: object) -> None:
    """Raise TypeError where `result` stands for work that nobody has done: what was measured is nothing."""
    pending = _pending(result)
    if pending is None:
        return
    if isinstance(pending, CoroutineType):
        pending.close()  # else Python warns that it was never awaited
    what, how = _PENDING[type(pending)]
    name = step_name(step).rpartition(".")[2]
    consumed = how.format(step=name if name.isidentifier() else "work")
    advice = f"Have a step that does it, as in `lambda sample: {consumed}`"
    if pending is not result:
        what, advice = f"{what} within a result of type {type(result).__name__}", "Have a step that uses it up"
    raise TypeError(
        f"step must do its work before it returns, got {what} from {name_of(step)}: its work is yet to be done, and "
        f"would not be measured. {advice}"
    )


def _pending(result: object) -> Any:
    """What of `result` is work that nobody has begun, or that would be its caller's; None where nothing is."""
    if type(result) in _PENDING:
        return result
    looked_at: list[Any] = [result]
    for found in looked_at:
        kind = type(found)
        if kind in _PENDING and not _begun(found):
            return found
        held: Iterable[object] = ()
        if kind in _CONTAINERS:
            held = found.values() if kind is dict else found
        elif kind in _LOOKED_INTO:
            held = gc.get_referents(found)
        looked_at += itertools.islice(held, max(0, _MOST_LOOKED_AT - len(looked_at)))
    return None


def _begun(found: Any) -> bool:
    """Whether a generator or a coroutine is under way, or over."""
    prefix = {GeneratorType: "gi", CoroutineType: "cr", AsyncGeneratorType: "ag"}.get(type(found))
    if prefix is None:
        return False
    over = getattr(found, f"{prefix}_frame") is None
    return over or any(getattr(found, f"{prefix}_{state}", False) for state in ("running", "suspended"))


def step_name(step: Callable[..., Any]) -> str:
    """The step's own qualified name."""
    return getattr(step, "__qualname__", None) or type(step).__qualname__


def name_of(step: Callable[..., Any]) -> str:
    """What a recording of `step` is called where nobody named it: "test_stable.<lambda>"."""
    return step_name(step).replace(".<locals>", "")
