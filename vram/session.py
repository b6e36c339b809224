"""The object behind the fixture `vram`: the plain functions with a session's options, and a summary a recording."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vram import api
from vram.budgets.accepted import Accepted, add
from vram.budgets.file import Budget, read_budget
from vram.budgets.headroom import Headroom
from vram.cards import find_card
from vram.errors import Inconclusive, MemoryGrowth, OutOfMemory, Undecided
from vram.meters import Meter, default_meter, default_meters, resolve_device, torch_device
from vram.meters.environment import environment
from vram.recording import Recording, check_recording
from vram.replaying.limits import Listener
from vram.replaying.loop import planned
from vram.replaying.marks import mark
from vram.replaying.measurement import Measurement, measure
from vram.replaying.rerunnable import loosen, name_of
from vram.summary import NEEDS_ATTENTION, Check, RecordingSummary, merged_environment
from vram.summary.recording import OWN_KEYS
from vram.units import parse_bytes
from vram.verdict.channels import verdicts
from vram.verdict.ratio import compare
from vram.verdict.summarize import summarize, summarize_out_of_memory

if TYPE_CHECKING:
    import torch

    from vram.explanation.earlier import Earlier

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class SessionOptions:
    """Values of the options and their ini twins. `laps`, `samples` and `max_seconds` are None where neither sets them.

    `card` is the one to forecast for. Snapshots for PyTorch's memory viewer go into the folder `snapshots`. Relative
    paths of budgets begin at the folder `root`. `headroom` is what accepted budgets allow above their figure; None
    leaves what each has. With `breakdown` the highest sample of each recording, or of each settled one, runs again.
    """

    device: str = "auto"
    card: str | None = None
    laps: int | None = None
    samples: int | None = None
    accept: bool = False
    headroom: Headroom | None = None
    root: Path = Path()
    breakdown: Literal["always", "settled", ""] = ""
    snapshots: Path = Path("vram-snapshots")
    max_seconds: float | None = None


@dataclass(frozen=True)
class RunningTest:
    """One test: what was alive when it began, a function that returns the objects it works with, names by id."""

    earlier: Earlier
    used: Callable[[], list[object]]
    named: Mapping[int, str]


class VramSession:
    """Replays, judges and remembers: `summaries` has one `RecordingSummary` a recording, in the order of replays."""

    mark = staticmethod(mark)
    judge = staticmethod(verdicts)

    def __init__(self, options: SessionOptions, progress: Listener | None = None) -> None:
        """`progress` hears of every replay; see `vram.replay`."""
        self.options, self._progress = options, progress
        self.summaries: list[RecordingSummary] = []
        self.accepted: list[Accepted] = []
        self.environment: dict[str, object] = {}
        self._index: dict[int, int] = {}  # in `summaries`, by the recording's id, as long as it lives
        self._touched: dict[int, None] = {}  # indices, in order, since `touched` was last called
        self._failed: set[int] = set()  # indices of recordings with a failure that nobody expected
        self.retried: set[int] = set()  # indices of recordings that a later try of their test has made anew
        self._earlier: dict[str, list[int]] = {}  # indices of what earlier tries of the test that runs made, by name
        self._outdated: Collection[int] = ()  # indices in `accepted`, of these tries too
        self._snapshots: set[Path] = set()
        self._last: weakref.ref[Recording] | None = None  # the one that keeps its samples
        self._test: RunningTest | None = None

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
        allocates: bool = True,
        cache_budget: str | int | None = None,
        max_runs: int | None = None,
        max_seconds: float | None = None,
    ) -> Recording:
        """`vram.replay` on the session's device, laps and seconds; an argument comes before an option.

        In the history a recording with a `name` is known by it, whichever test makes it; one without by its test and
        step. `facts` are what else must be equal for runs to be compared: `{"model": "llava-7b", "dtype": "float16"}`.

        Only a recording that grows keeps `step`, for the explanation: until that is made, or as long as somebody else
        keeps the recording. Another keeps its samples, until the next begins or the test ends; a check that fails runs
        the step again where it is alive still.
        """
        __tracebackhide__ = api.hidden_on_oom
        self.release()
        if not isinstance(facts, Mapping | None):
            raise TypeError(f'facts must be a dictionary of text, as in {{"model": "llava-7b"}}, got {facts!r}')
        key: dict[str, Any] = {"named": name is not None, "facts": dict(facts or {})}
        plan = planned(
            step,
            samples,
            laps=self.options.laps if laps is None else laps,
            warmup_laps=warmup_laps,
            meters=default_meters(self.options.device) if meters is None else meters,
            name=name,
            allocates=allocates,
            cache_budget=cache_budget,
            max_runs=max_runs,
            max_seconds=self.options.max_seconds if max_seconds is None else max_seconds,
            progress=self._progress,
        )
        try:
            return api.replayed(plan, lambda recording: self._keep(recording, key))
        except OutOfMemory as error:
            self._add(replace(summarize_out_of_memory(name or name_of(step), error), **key))
            self.environment = self.environment or environment([default_meter(self.device)])
            raise

    def _keep(self, recording: Recording, key: Mapping[str, Any]) -> None:
        """Summarize a recording of this session, broken down where an option says so."""
        self._remember(recording)
        self._replace(recording, replace(self.summary(recording), **key))
        settled = self.summary(recording).verdict not in ("grows", "undecided")
        if self.options.breakdown == "always" or (self.options.breakdown and settled):
            from vram.explanation.peak import breakdown  # it needs the tracer, which imports torch

            save = partial(self._save, f"{recording.name}-timeline") if self.options.breakdown == "always" else None
            self._replace(recording, self.summary(recording).explained(*breakdown(recording, save, once=not save)))
        elif self.options.breakdown:  # another run would only add to what it keeps
            self._replace(recording, self.summary(recording).explained(None, "it grows: no run has its peak again"))
        if settled:
            # A model kept for the rerun of a check would count in the peaks of all later tests.
            loosen(recording, samples=False)
            self._last = weakref.ref(recording)
        vars(recording)["_test"] = self._test

    def release(self) -> None:
        """Let go of the samples of the last recording: something else is measured now."""
        if self._last is not None and (recording := self._last()) is not None:
            loosen(recording)
        self._last = None

    def begin(self, test: RunningTest | None, earlier: Iterable[int] = (), accepted: Collection[int] = ()) -> None:
        """A test begins, perhaps anew: indices of the recordings and accepted budgets of its tries before this one."""
        self.release()
        self._test, self._earlier, self._outdated = test, {}, accepted
        for index in earlier:
            self._earlier.setdefault(self.summaries[index].name, []).append(index)

    def _known(self, recording: Recording) -> dict[str, Any]:
        """Arguments for the explanation of a peak: a breakdown, and what other tests left."""
        index, test = self._index.get(id(recording)), vars(recording).get("_test")
        return {
            "known": None if index is None else self.summaries[index].at_peak,
            "earlier": None if test is None else test.earlier,
            "used": [] if self._test is None else self._test.used(),
            "named": None if self._test is None else self._test.named,
            "device": self.device,
        }

    def measure(self) -> AbstractContextManager[Measurement]:
        """`with vram.measure() as m:` on the session's device; see `vram.measure`."""
        self.release()
        return measure(self.options.device)

    def assert_stable(self, recording: Recording, *, cache_budget: str | int | None = None) -> None:
        """See `vram.assert_stable`. The explanation of growth goes into the summary too, and a snapshot into a file."""
        __tracebackhide__ = True
        check_recording(recording)
        if self._touch(recording) and cache_budget is not None:
            self._rejudge(recording, parse_bytes(cache_budget))
        try:
            api.assert_stable(
                recording,
                cache_budget=cache_budget,
                save=lambda snapshot: self._save(recording.name, snapshot),
                card=find_card(self.options.card) if self.options.card else None,
            )
        except (MemoryGrowth, Undecided) as growth:
            self._remember(recording)
            if growth.explanation is not None:
                self._replace(recording, self.summary(recording).with_growth(growth.explanation))
            raise
        except Inconclusive as error:
            if self._touch(recording):
                self._check(recording, _inconclusive("growth", recording, error))
            raise

    def _rejudge(self, recording: Recording, cache_budget_bytes: int) -> None:
        """Let the summary say the verdict with this budget for caches."""
        new = summarize(recording, cache_budget_bytes=cache_budget_bytes)
        fields = ("verdict", "verdict_channel", "reason", "bytes_per_sample", "channels", "cache_budget_bytes")
        self._replace(recording, replace(self.summary(recording), **{name: getattr(new, name) for name in fields}))

    def _save(self, name: str, snapshot: dict[str, Any]) -> Path:
        from vram.explanation.snapshot import write_snapshot  # only where something grows

        return write_snapshot(self.options.snapshots, name, snapshot, self._snapshots)

    def budget(self, path: Any, **key: str) -> Budget:
        """The recorded budget of this key; see `vram.read_budget`. A relative path begins at pytest's rootdir."""
        return read_budget(self.options.root / path, **key)

    @property
    def facts(self) -> Mapping[str, str]:
        """The facts that a peak depends on besides the model, for a budget's key: the device, PyTorch's minor version.

        `vram.budget("budgets.toml", **vram.facts, model="unet")` is another budget on another GPU.
        """
        meter = default_meter(self.device)
        device = str(meter.facts.get("device", self.torch_device.type))
        return {"device": device, "torch": ".".join(str(environment([meter])["torch"]).split(".")[:2])}

    def accept(self, budget: Budget, peak_bytes: int) -> Budget:
        """The budget to compare `peak_bytes` with: under `--vram-accept` rewritten to that, else as it is.

        One that can't be rewritten stays as it is too; `accepted` says why.
        """
        if not self.options.accept:
            return budget
        return add(self.accepted, budget, peak_bytes, headroom=self.options.headroom, outdated=self._outdated)

    def assert_peak(
        self,
        recording: Recording,
        limit: str | int | Budget,
        channel: str = "requested_peak",
        *,
        besides_bytes: int = 0,
        above_start: bool = False,
    ) -> None:
        """See `vram.assert_peak`. Under `--vram-accept` a `Budget` is rewritten to what was measured, and passes."""
        __tracebackhide__ = True
        check_recording(recording, channel)
        self._touch(recording)
        if isinstance(limit, Budget) and channel in recording.channels and not recording.unseen(channel):
            besides = recording.besides_bytes(channel, besides_bytes, above_start=above_start)
            limit = self.accept(limit, recording.peak_bytes(channel) - besides)
        check = api.check_peak(recording, limit, channel, besides_bytes=besides_bytes, above_start=above_start)
        self._check(recording, check)
        if isinstance(limit, Budget):
            self._replace(recording, replace(self.summary(recording), budget_bytes=limit.limit_bytes))
        if check.kind == "budget" and check.status == "new":
            absent = {**self.summary(recording).absent, "budget": "new: record it with --vram-accept"}
            self._replace(recording, replace(self.summary(recording), absent=absent))
        explanation = api.explained_check(recording, check, **self._known(recording))
        if explanation is not None and self.summary(recording).breakdown is None:
            self._replace(recording, self.summary(recording).explained(explanation.at_peak, explanation.note))
        api.raise_unless_passed(recording.title, check, explanation)

    def assert_garbage(self, recording: Recording, limit: str | int) -> None:
        """See `vram.assert_garbage`."""
        __tracebackhide__ = True
        check = api.check_garbage(recording, limit)
        self._check(recording, check)
        found = api.explained_garbage(recording, check, self.summary(recording).garbage)
        self._replace(recording, self.summary(recording).with_garbage(found))
        api.raise_unless_passed(recording.title, check, found=found)

    def assert_ratio(
        self,
        recording: Recording,
        reference: Recording,
        channel: str = "requested_peak",
        *,
        at_most: float,
        besides_bytes: int = 0,
        above_start: bool = False,
        lengths: Sequence[int] | None = None,
        samples: Iterable[int] | None = None,
    ) -> None:
        """See `vram.assert_ratio`. How much it needs goes into the summary of a recording of this session."""
        __tracebackhide__ = True
        try:
            ratio = compare(
                recording,
                reference,
                channel,
                at_most=at_most,
                besides_bytes=besides_bytes,
                above_start=above_start,
                lengths=lengths,
                samples=samples,
            )
        except Inconclusive as error:
            if self._touch(recording):
                self._check(recording, _inconclusive("ratio", recording, error))
            raise
        explanation = api.explained_ratio(recording, ratio, **self._known(recording)) if ratio.over else None
        if self._touch(recording):
            ratios = (*self.summary(recording).ratios, api.ratio_summary(ratio, explanation))
            self._replace(recording, replace(self.summary(recording), ratios=ratios))
        if ratio.over:
            raise api.ratio_exceeded(ratio, explanation, relative=above_start or besides_bytes != 0)

    def note(self, recording: Recording, **figures: int | float | str | None) -> None:
        """Add figures measured elsewhere to the recording's summary, as in `note(recording, softmax_peak_bytes=0)`."""
        for name, value in figures.items():
            if name in OWN_KEYS:
                raise ValueError(f"a note must have a name of its own, got {name}, which the report has already")
            if not isinstance(value, int | float | str | None):
                raise TypeError(f"{name} must be a number or text of Python's own, for the report, got {value!r}")
        self._remember(recording)
        self._replace(recording, replace(self.summary(recording), notes={**self.summary(recording).notes, **figures}))

    def summary(self, recording: Recording) -> RecordingSummary:
        """The summary of a recording that this session made or noted. Raises KeyError for another."""
        return self.summaries[self._index[id(recording)]]

    def touched(self) -> list[int]:
        """Indices into `summaries` of the recordings that were made or judged since this was last called."""
        touched, self._touched = list(self._touched), {}
        return touched

    def settle(self, touched: Iterable[int], *, expected: bool, new: bool = False) -> None:
        """A test that judged these recordings failed; `expected`: it is marked xfail; `new`: as something is new."""
        for index in touched:
            if new and not expected and self.summaries[index].worst == "new":
                self.summaries[index] = replace(self.summaries[index], new_fails=True)
            if self.summaries[index].worst not in NEEDS_ATTENTION:
                continue
            self._failed |= set() if expected else {index}
            self.summaries[index] = replace(self.summaries[index], expected=index not in self._failed)

    def add_check(self, index: int, check: Check, base_lines: Sequence[str] = ()) -> None:
        """Note the gate's check in a summary, and what the peak has more; one made again replaces the earlier."""
        one = self.summaries[index]
        checks = (*(each for each in one.checks if each.compares_with != check.compares_with), check)
        self.summaries[index] = replace(one, checks=checks, base_lines=tuple(base_lines) or one.base_lines)
        self._touched[index] = None

    def _check(self, recording: Recording, check: Check) -> None:
        self._remember(recording)
        self.add_check(self._index[id(recording)], check)

    def _replace(self, recording: Recording, summary: RecordingSummary) -> None:
        self.summaries[self._index[id(recording)]] = summary

    def _touch(self, recording: Recording) -> bool:
        """True where this session made or noted the recording, which a test uses now."""
        if (index := self._index.get(id(recording))) is not None:
            self._touched[index] = None
        return index is not None

    def _add(self, summary: RecordingSummary) -> int:
        self.retried.update(self._earlier.pop(summary.name, ()))
        self.summaries.append(summary)
        self._touched[index := len(self.summaries) - 1] = None
        return index

    def _remember(self, recording: Recording) -> None:
        """Summarize a recording that is new to this session; a test uses it now."""
        if self._touch(recording):
            return
        self._index[id(recording)] = self._add(summarize(recording))
        weakref.finalize(recording, self._index.pop, id(recording), None)
        self.environment = merged_environment([self.environment, recording.environment])


def _inconclusive(kind: Literal["growth", "ratio"], recording: Recording, error: Inconclusive) -> Check:
    return Check(kind, "inconclusive", f"inconclusive: {str(error).removeprefix(f'{recording.title}: ')}")
