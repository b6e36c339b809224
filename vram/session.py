"""What the fixture `vram` offers: the plain functions with a session's options, and a summary of every recording."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vram import api as checks
from vram.budgets.accepted import Accepted, record
from vram.budgets.file import Budget, read_budget
from vram.cards import find_card
from vram.errors import Inconclusive, LevelExceeded, MemoryGrowth, OutOfMemory, Undecided
from vram.meters import Meter, default_meter, default_meters, resolve_device, torch_device
from vram.meters.environment import environment
from vram.recording import Recording, check_recording
from vram.replaying.marks import mark
from vram.replaying.measurement import Measurement, measure
from vram.replaying.rerunnable import forget, name_of
from vram.report.github import merged
from vram.verdict.growth import Verdict
from vram.verdict.ratio import compare

if TYPE_CHECKING:
    import torch

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class SessionOptions:
    """What the options and their ini twins say. `laps` and `samples` are None where nobody said.

    `card` is the one to forecast for. Snapshots for PyTorch's memory viewer go into the folder `snapshots`.
    """

    device: str = "auto"
    card: str | None = None
    laps: int | None = None
    samples: int | None = None
    accept: bool = False
    breakdown: bool = False
    snapshots: Path = Path("vram-snapshots")


class VramSession:
    """Replays, judges and remembers. `summaries` holds one dictionary a recording, ready for JSON."""

    mark = staticmethod(mark)
    judge = staticmethod(checks.verdicts)

    def __init__(self, options: SessionOptions) -> None:
        self.options = options
        self.summaries: list[dict[str, Any]] = []
        self.accepted: list[Accepted] = []
        self._by_recording: dict[int, dict[str, Any]] = {}  # by its id, as long as it lives
        self._snapshots: set[Path] = set()
        self.environment: dict[str, object] = {}
        self._touched: dict[int, dict[str, Any]] = {}  # by the summary's id: since somebody last asked

    @property
    def device(self) -> str:
        """The device measured: "cpu", "cuda", "cuda:INDEX" or "simulated:CARD"."""
        return resolve_device(self.options.device)

    @property
    def torch_device(self) -> torch.device:
        """Where tensors that are measured live; for a simulated card `cuda:0`."""
        return torch_device(self.device)

    def on_device(self) -> AbstractContextManager[object]:
        """Build models inside: a simulated card's tensors must be made there. Elsewhere it changes nothing."""
        return default_meter(self.device).watching() if self.device.startswith("simulated") else nullcontext()

    def replay(
        self,
        step: Callable[[Sample], object],
        samples: Iterable[Sample],
        *,
        laps: int | None = None,
        warmup_laps: int = 1,
        meters: Sequence[Meter] | None = None,
        name: str | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> Recording:
        """`vram.replay` on the session's device and laps; an argument comes before an option.

        In the history a recording with a `name` is known by it, whichever test makes it; one without by its test and
        step. `facts` are what else must be equal for runs to be compared: `{"model": "llava-7b", "dtype": "float16"}`.

        Only a recording that grows keeps `step` and `samples`, for the explanation: until that is given, or as long as
        somebody else keeps the recording.
        """
        __tracebackhide__ = checks.hidden_on_oom
        if not isinstance(facts, Mapping | None):
            raise TypeError(f'facts must be a dictionary of text, as in {{"model": "llava-7b"}}, got {facts!r}')
        known = {"named": name is not None, "facts": dict(facts or {})}
        try:
            recording = checks.replay(
                step,
                samples,
                laps=self.options.laps if laps is None else laps,
                warmup_laps=warmup_laps,
                meters=default_meters(self.options.device) if meters is None else meters,
                name=name,
            )
        except OutOfMemory as error:
            self.summaries.append({**_failed(name or name_of(step), error), **known})
            self.environment = self.environment or environment([default_meter(self.device)])
            raise
        self._remember(recording)
        self._by_recording[id(recording)].update(known)
        if self.options.breakdown:
            from vram.explanation.peak import breakdown

            self._by_recording[id(recording)]["at_peak"] = breakdown(recording)
        if self._by_recording[id(recording)]["verdict"] not in ("grows", "undecided"):
            # No check will ask why: a model kept for that would count in the peaks of all later tests.
            forget(recording)
        return recording

    def measure(self) -> AbstractContextManager[Measurement]:
        """`with vram.measure() as m:` on the session's device; see `vram.measure`."""
        return measure(self.options.device)

    def assert_stable(self, recording: Recording) -> None:
        """See `vram.assert_stable`. What explains growth goes into the summary too, and a snapshot into a file."""
        __tracebackhide__ = True
        self._touch(recording)
        try:
            checks.assert_stable(
                recording,
                save=lambda snapshot: self._save(recording.name, snapshot),
                card=find_card(self.options.card) if self.options.card else None,
            )
        except (MemoryGrowth, Undecided) as growth:
            if growth.explanation is not None:
                self._summary(recording)["explanation"] = growth.explanation
            raise

    def _save(self, name: str, snapshot: dict[str, Any]) -> Path:
        from vram.explanation.snapshot import write_snapshot

        return write_snapshot(self.options.snapshots, name, snapshot, self._snapshots)

    def budget(self, path: Any, **key: str) -> Budget:
        """The recorded budget of this key; see `vram.read_budget`."""
        return read_budget(path, **key)

    def accept(self, budget: Budget, peak_bytes: int) -> Budget:
        """The budget to hold `peak_bytes` to: under `--vram-accept` rewritten to that, else as it is.

        One that can't be rewritten stays as it is too; `accepted` says why.
        """
        if not self.options.accept:
            return budget
        held, told = record(budget, peak_bytes, self.accepted)
        self.accepted.append(told)
        return held

    def assert_peak(
        self,
        recording: Recording,
        limit: str | int | Budget,
        channel: str = "requested_peak",
        *,
        besides_bytes: int = 0,
    ) -> None:
        """See `vram.assert_peak`. Under `--vram-accept` a `Budget` is rewritten to what was measured, and passes."""
        __tracebackhide__ = True
        check_recording(recording, channel)
        self._touch(recording)
        if isinstance(limit, Budget) and channel in recording.channels:
            limit = self.accept(limit, recording.peak_bytes(channel) - besides_bytes)
        if isinstance(limit, Budget):
            self.note(recording, budget_bytes=limit.limit_bytes, besides_bytes=besides_bytes)
            if limit.limit_bytes is None:
                self._summary(recording)["absent"]["budget"] = "new: record it with --vram-accept"
        checks.assert_peak(recording, limit, channel, besides_bytes=besides_bytes)

    def assert_ratio(
        self,
        recording: Recording,
        reference: Recording,
        channel: str = "requested_peak",
        *,
        at_most: float,
        besides_bytes: int = 0,
        lengths: Sequence[int] | None = None,
        samples: Iterable[int] | None = None,
    ) -> None:
        """See `vram.assert_ratio`. How much it needs goes into the summary of a recording of this session."""
        __tracebackhide__ = True
        level = compare(
            recording,
            reference,
            channel,
            at_most=at_most,
            besides_bytes=besides_bytes,
            lengths=lengths,
            samples=samples,
        )
        summary = self._touch(recording)
        if summary is not None:
            summary.setdefault("ratios", []).append(level.summary())
        if level.over:
            raise LevelExceeded(level.explanation())

    def touched(self) -> list[dict[str, Any]]:
        """Summaries of the recordings that were made or judged since this was last asked."""
        touched, self._touched = list(self._touched.values()), {}
        return touched

    def note(self, recording: Recording, **figures: int | float | str | None) -> None:
        """Add figures measured elsewhere to the recording's summary, as in `note(recording, softmax_peak_bytes=0)`."""
        for name, value in figures.items():
            if not isinstance(value, int | float | str | None):
                raise TypeError(f"{name} must be a number or text of Python's own, for the report, got {value!r}")
        self._summary(recording).update(figures)

    def _summary(self, recording: Recording) -> dict[str, Any]:
        if id(recording) not in self._by_recording:
            self._remember(recording)
        self._touch(recording)
        return self._by_recording[id(recording)]

    def _touch(self, recording: Recording) -> dict[str, Any] | None:
        """The recording's summary, None for one that this session neither made nor noted; a test uses it now."""
        summary = self._by_recording.get(id(recording))
        if summary is not None:
            self._touched[id(summary)] = summary
        return summary

    def _remember(self, recording: Recording) -> None:
        self._by_recording[id(recording)] = summary = summarize(recording)
        weakref.finalize(recording, self._by_recording.pop, id(recording), None)
        self._touch(recording)
        self.summaries.append(summary)
        self.environment = merged([self.environment, recording.environment])


def summarize(recording: Recording) -> dict[str, Any]:
    """The recording as one entry of the report's `modes` (schema 1)."""
    judged = checks.verdicts(recording)
    absent = dict(recording.absent)
    try:
        channel, verdict = checks.overall(recording, judged)
        decided: dict[str, Any] = {
            "verdict": verdict.status,
            "verdict_channel": channel,
            "reason": verdict.reason,
            "bytes_per_sample": verdict.bytes_per_sample,
        }
    except Inconclusive as error:
        decided = {"verdict": None, "verdict_channel": None, "reason": str(error), "bytes_per_sample": None}
        absent["verdict"] = "growth is judged over laps, and one was run" if recording.laps == 1 else str(error)
    return {
        "mode": recording.name,
        "laps": recording.laps,
        "samples": recording.samples,
        **decided,
        "peak_bytes": recording.peak_bytes() if "requested_peak" in recording.channels else None,
        "softmax_peak_bytes": None,
        "budget_bytes": None,
        "seconds": float(recording.seconds.sum()),
        "channels": {name: _channel(recording, name, judged.get(name)) for name in judged or recording.channels},
        "marks": _marks(recording),
        "environment": dict(recording.environment),
        "absent": absent,
    }


def _marks(recording: Recording) -> dict[str, Any]:
    """Of each mark the readings of the sample that needs most, lap by lap."""
    sample = int(recording.channels[_most(recording)].max(axis=0).argmax()) if recording.channels else 0
    return {
        name: {
            "sample": sample,
            "channels": {
                channel: [lap[sample].tolist() for lap in laps]
                for channel, laps in channels.items()
                if any(lap[sample].size for lap in laps)
            },
        }
        for name, channels in recording.marks.items()
    }


def _most(recording: Recording) -> str:
    return "requested_peak" if "requested_peak" in recording.channels else next(iter(recording.channels))


def _channel(recording: Recording, name: str, verdict: Verdict | None) -> dict[str, Any]:
    judged: dict[str, Any] = dict.fromkeys(
        ("verdict", "bytes_per_sample", "interval_bytes", "onset_run", "resolution_bytes", "rare_leak_bound")
    )
    if verdict is not None:
        judged = {
            "verdict": verdict.status,
            "bytes_per_sample": verdict.bytes_per_sample,
            "interval_bytes": [verdict.low_bytes, verdict.high_bytes],
            "onset_run": verdict.onset_run,
            "resolution_bytes": verdict.resolution_bytes,
            "rare_leak_bound": verdict.rare_leak_bound,
        }
    return {
        **judged,
        "exact": name in recording.exact,
        "tolerance_bytes": recording.tolerance_bytes.get(name, 0),
        "before_bytes": recording.before[name],
        "bytes": recording.channels[name].tolist(),
    }


def _failed(name: str, error: OutOfMemory) -> dict[str, Any]:
    nothing = ("bytes_per_sample", "peak_bytes", "softmax_peak_bytes", "budget_bytes", "seconds", "laps", "samples")
    return {
        "mode": name,
        **dict.fromkeys(nothing),
        "verdict": "out of memory",
        "verdict_channel": None,
        "reason": str(error).partition("\n")[0],
        "explanation": {"lines": str(error).splitlines()[1:]},
        "channels": {},
        "absent": dict.fromkeys(nothing, "the replay ran out of memory"),
    }
