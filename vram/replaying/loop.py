"""Replaying the same samples in laps, reading every meter after each, until the rule has what it needs."""

from __future__ import annotations

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from numbers import Integral
from operator import itemgetter
from typing import Any

import numpy as np

from vram.meters import Meter, default_meters, remarks_of
from vram.recording import MarkReadings, Recording, is_live
from vram.replaying.collector import cheap_collections
from vram.replaying.garbage import Garbage
from vram.replaying.limits import Limits, Listener, Progress, checked_limits, silence
from vram.replaying.marks import listening
from vram.replaying.out_of_memory import is_out_of_memory, out_of_memory
from vram.replaying.pending import refuse_pending
from vram.replaying.rerunnable import Rerunnable, name_of, remember
from vram.units import parse_bytes
from vram.verdict.channels import judged_figures
from vram.verdict.growth import Verdict, judge_growth

DEFAULT_LAPS = 5

# name -> channel -> lap -> sample -> readings
_Marks = dict[str, dict[str, list[list[list[int]]]]]


@dataclass(frozen=True)
class Plan:
    """The arguments of one replay, checked. `base_laps` is where the first look is taken, `warmup_laps` included."""

    rerunnable: Rerunnable
    meters: tuple[Meter, ...]
    base_laps: int
    warmup_laps: int
    name: str
    allocates: bool = True
    cache_budget_bytes: int = 0
    limits: Limits = field(default_factory=Limits)
    progress: Listener = silence


def planned(
    step: Callable[[Any], object],
    samples: Iterable[Any],
    *,
    laps: int | None,
    warmup_laps: int,
    meters: Sequence[Meter] | None,
    name: str | None,
    allocates: bool = True,
    cache_budget: str | int | None = None,
    max_runs: int | None = None,
    max_seconds: float | None = None,
    progress: Listener | None = None,
) -> Plan:
    """A plan from arguments as `vram.replay` takes them.

    Raises ValueError for no samples, too few laps, a size that cannot be read or a limit that lets nothing run,
    TypeError for arguments of a wrong type.
    """
    limits = checked_limits(max_runs, max_seconds)
    lap_samples = _checked(step, samples, laps, warmup_laps)
    base_laps = DEFAULT_LAPS if laps is None else laps
    if not lap_samples:
        raise ValueError("samples must hold at least one sample, got none")
    if base_laps == 1:
        warmup_laps = 0
    elif warmup_laps < 0 or base_laps < warmup_laps + 2:
        least = max(warmup_laps, 0) + 2
        raise ValueError(f"laps must be at least {least} (warm-up + 2), or 1 for peaks alone, got {base_laps}")
    used = tuple(meters or default_meters())
    return Plan(
        Rerunnable(step, lap_samples, _device_of(used)),
        used,
        base_laps,
        warmup_laps,
        name or name_of(step),
        allocates=allocates,
        cache_budget_bytes=parse_bytes(cache_budget or 0),
        limits=limits,
        progress=progress or silence,
    )


def _checked(step: Callable[[Any], object], samples: Iterable[Any], laps: object, warmup_laps: object) -> list[Any]:
    """The samples as a list. Raises TypeError for an argument of a wrong type."""
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


def _device_of(meters: Sequence[Meter]) -> str:
    """The device to follow tensors on when the samples run again: the one that decides."""
    return next((meter.device for meter in meters if meter.exact), "cpu")


def record(plan: Plan, then: Callable[[Recording], None] = lambda _: None) -> Recording:
    """Run the samples lap after lap, as often as the rule needs, or until a limit is reached.

    The recording keeps step and samples for a rerun. One that `then` makes of it collects cheaply too: it is called
    before what was alive is shown to the collector again.

    Raises what the step does, but OutOfMemory where it ran out of memory, and TypeError for a result that is work which
    has not run.
    """
    with cheap_collections() as hide_more:
        recording = _recorded(plan, hide_more)
        remember(recording, plan.rerunnable)
        then(recording)
        return recording


def _recorded(plan: Plan, hide_more: Callable[[], None]) -> Recording:
    with ExitStack() as stack:
        meters = [stack.enter_context(meter) for meter in plan.meters]
        hide_more()  # the meters know every storage
        stack.callback(plan.progress, None)
        loop = _Loop(plan, meters)
        stack.enter_context(loop.garbage)
        loop.run()
        return loop.recording()


def _exact(meters: Iterable[Meter]) -> frozenset[str]:
    return frozenset[str]().union(*(meter.exact for meter in meters))


class _Loop:
    """Readings in the making: plain lists of ints, so that they weigh nothing in what they measure."""

    def __init__(self, plan: Plan, meters: list[Meter]) -> None:
        from vram.meters.environment import environment  # late: importing vram imports no torch

        self.plan, self.meters = plan, meters
        self.step, self.samples = plan.rerunnable.step, plan.rerunnable.samples
        self.environment = environment(meters)
        self.figures: dict[str, list[list[int]]] = defaultdict(list)
        self.seconds: list[list[float]] = []
        self.marks: _Marks = {}
        self.began, self.runs = time.perf_counter(), 0
        self.stopped, self.not_run = "", 0  # the limit that was reached, and the samples that never ran
        self.decided = False  # whether none but noisy channels need more laps
        self.live = [channel for channel in _exact(meters) if is_live(channel)]
        self.garbage = Garbage(self._live_bytes)
        self.garbage_bytes: list[list[int]] = []
        gc.collect()
        self.before = self._settled_reading()
        self.lost: set[str] = set()  # channels that a meter stopped trusting

    @property
    def channels(self) -> list[str]:
        return [channel for channel in self.before if channel not in self.lost]

    @property
    def exact(self) -> frozenset[str]:
        return _exact(self.meters).intersection(self.channels)

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

    def judge(self, channel: str) -> Verdict:
        return judge_growth(
            judged_figures({channel: self.readings(channel) for channel in self.channels}, channel),
            warmup_laps=self.plan.warmup_laps,
            base_laps=self.plan.base_laps,
            tolerance_bytes=self.tolerance_bytes.get(channel, 0),
            cache_budget_bytes=self.plan.cache_budget_bytes,
        )

    def laps_needed(self) -> tuple[int, str]:
        """Laps that the rule needs in all, and why; 0 for no more.

        A noisy channel needs more only where every lap rose.
        """
        needed = [(0, "")]
        self.decided = True
        for channel in self.channels if self.plan.base_laps > 1 else ():
            verdict = self.judge(channel)
            rose_always = verdict.rises == verdict.laps - self.plan.warmup_laps - 1
            if channel in self.deciding or rose_always:
                self.decided &= verdict.laps_wanted is None or channel not in self.deciding
                needed.append((verdict.laps_wanted or 0, f"{channel}: {verdict.reason}"))
        return max(needed, key=itemgetter(0))

    def readings(self, channel: str) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array(self.figures[channel], dtype=np.int64)

    def run(self) -> None:
        """Run laps until the rule needs no more, or a limit is reached."""
        laps, why = self.plan.base_laps, ""
        while self.laps < laps and not self.stopped:
            self.run_lap(laps * len(self.samples), why)
            if self.laps == laps and not self.stopped:
                laps, why = self.laps_needed()

    def run_lap(self, planned_runs: int, why: str) -> None:
        self.seconds.append([])
        self.garbage_bytes.append([])
        for channel in self.before:
            self.figures[channel].append([])
        for index in range(len(self.samples)):
            # A lap that can't be finished has no use, but for the first: something is known then.
            next_runs = len(self.samples) if self.runs and not index else 1
            if self.runs:
                self.stopped = self.plan.limits.reached(self.runs, time.perf_counter() - self.began, next_runs)
            if self.stopped:
                self._drop_lap(index)
                return
            self._run_sample(index)
            self.runs += 1
            self.garbage_bytes[-1].append(self.garbage.collect())
            reading = self._settled_reading()
            self.lost |= self.before.keys() - reading.keys()
            for channel in self.channels:
                self.figures[channel][-1].append(reading[channel])
            seconds = time.perf_counter() - self.began
            self.plan.progress(Progress(self.plan.name, self.runs, planned_runs, seconds, why))

    def _drop_lap(self, index: int) -> None:
        """Forget a lap that stops before sample `index`; the first one is all there is, and shorter then."""
        if self.laps == 1 and index:
            self.not_run = len(self.samples) - index
            return
        del self.seconds[-1], self.garbage_bytes[-1]
        for channel in self.before:
            del self.figures[channel][-1]

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
                refuse_pending(self.step, self.step(self.samples[index]))
                self.garbage.hold()
            for meter in self.meters:
                meter.synchronize()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = out_of_memory(error, self.laps - 1, index, self._reading())
        if failure is not None:  # raised out here, it does not carry the first error and the frames that hold tensors
            raise failure
        self.seconds[-1].append(time.perf_counter() - begin)

    def _live_bytes(self) -> int:
        """Bytes requested and alive on the device, of every card that decides."""
        reading = self._reading(cheap=True) if self.live else {}
        return sum(reading.get(channel, 0) for channel in self.live)

    def _settled_reading(self) -> dict[str, int]:
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

    def recording(self) -> Recording:
        channels, plan = self.channels, self.plan
        return Recording(
            name=plan.name,
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
            warmup_laps=plan.warmup_laps,
            base_laps=plan.base_laps,
            device=plan.rerunnable.device,
            allocates=plan.allocates,
            cache_budget_bytes=plan.cache_budget_bytes,
            garbage_bytes=np.array(self.garbage_bytes, dtype=np.int64) if any(map(is_live, self.exact)) else None,
            garbage_kinds=self.garbage.kinds,
            stopped="" if self.decided else self.stopped,
            not_run=self.not_run,
            remarks=self._remarks(),
        )

    def _remarks(self) -> tuple[str, ...]:
        if "requested_peak" not in self.channels:
            return ()
        peak_bytes = int(self.readings("requested_peak").max())
        return tuple(line for meter in self.meters for line in remarks_of(meter, peak_bytes))

    def _frozen_marks(self, by_lap: list[list[list[int]]]) -> MarkReadings:
        empty: list[list[int]] = [[] for _ in self.samples]
        padded = [*by_lap[: self.laps], *([empty] * (self.laps - len(by_lap)))]
        ran = len(self.samples) - self.not_run
        return tuple(tuple(np.array(readings, dtype=np.int64) for readings in lap[:ran]) for lap in padded)
