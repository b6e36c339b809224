"""One pytest session, as every surface shows it: the headline, what needs attention first, reasons and absences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from vram.summary.marked import MarkedSummary
from vram.summary.recording import NEEDS_ATTENTION, NO_DECISION, OUTCOMES, RecordingSummary
from vram.units import format_bytes

SCHEMA = 1
_MOST_NAMES = 4


@dataclass(frozen=True)
class Failure:
    """A test that a check of ours failed: where it is defined, the kind of error, and its whole message."""

    test: str
    file: str
    line: int
    kind: str
    message: str


@dataclass(frozen=True)
class RunSummary:
    """Everything that one pytest session measured. Those that need attention come first, the worst before the others.

    `otherwise` are tests that measure and failed for a reason that is not memory; `failed_besides` counts those that
    failed and measure nothing, and what could not be collected. `missing` has a line for each recording of the base
    that this session did not make; it fails where `missing_fails`. `interrupted`: somebody ended the session before its
    last test. `saved` says where a gate's run is kept, what it was compared with, and whether it is accepted as the
    base: storage, run, base, criteria, accepted.
    """

    environment: Mapping[str, Any] = field(default_factory=dict)
    recordings: Sequence[RecordingSummary] = ()
    tests: Sequence[MarkedSummary] = ()
    failures: Sequence[Failure] = ()
    otherwise: Sequence[str] = ()
    missing: Sequence[str] = ()
    missing_fails: bool = False
    failed_besides: int = 0
    interrupted: bool = False
    saved: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "recordings", tuple(sorted(self.recordings, key=_rank)))
        ranked = sorted(self.tests, key=lambda test: (not test.needs_attention, -test.peak_bytes))
        object.__setattr__(self, "tests", tuple(ranked))

    @property
    def failing(self) -> list[RecordingSummary]:
        """Recordings that need attention, the worst first."""
        return [one for one in self.recordings if one.needs_attention]

    @property
    def unsettled(self) -> list[RecordingSummary]:
        """Recordings that need attention or have no decision, the worst first."""
        return [one for one in self.recordings if one.outcome in NEEDS_ATTENTION | NO_DECISION]

    @property
    def failed_tests(self) -> list[MarkedSummary]:
        """Marked tests that need attention."""
        return [test for test in self.tests if test.needs_attention]

    @property
    def standing(self) -> Literal["failing", "open", "fine"]:
        """Whether something needs attention, or else is without a decision."""
        return "failing" if self._failing else "open" if self._open else "fine"

    @property
    def _failing(self) -> int:
        return len(self.failing) + len(self.failed_tests) + (len(self.missing) if self.missing_fails else 0)

    @property
    def _open(self) -> int:
        outcomes = [*(one.outcome for one in self.recordings), *(test.outcome for test in self.tests)]
        return len(self.missing) + sum(outcome in NO_DECISION for outcome in outcomes)

    @property
    def headline(self) -> str:
        """The outcomes in one line: how many need attention, then how many ended in each."""
        counts = Counter(one.outcome for one in self.recordings)
        parts = [f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome]]
        of_tests = Counter(test.outcome for test in self.tests)
        parts += [f"{count} marked {_tests(count)} {outcome}" for outcome, count in sorted(of_tests.items())]
        if self.otherwise:
            parts.append(f"{len(self.otherwise)} {_tests(len(self.otherwise))} failed for a reason that is not memory")
        missing = len(self.missing)
        parts += [f"{missing} missing"] if missing else []
        total = len(self.recordings) + len(self.tests) + missing
        if self.standing == "failing":
            needs = "needs" if self._failing == 1 else "need"
            begin = f"{self._failing} of {total} {needs} attention"
        elif self.standing == "open":
            begin = f"no decision on {self._open} of {total}"
        else:
            begin = "nothing needs attention" if total else "nothing was measured"
        return f"{begin}: {', '.join(parts)}" if parts else begin

    @property
    def reasons(self) -> list[str]:
        """One line for each check that failed, is new or undecided, or is missing. Marked tests have theirs in their
        table."""
        return [*(line for one in self.unsettled for line in one.reasons), *self.missing]

    @property
    def remarks(self) -> list[str]:
        """Lines worth knowing that fail nothing: garbage, noisy channels that grow, climbs of plateaus, ratios kept,
        what a simulation assumed and does not count."""
        noisy = [
            f"{one.name}: {name} grows by {channel.growth_text} a sample (noisy: reported, never fails a test)"
            for one in self.recordings
            for name, channel in one.channels.items()
            if channel.verdict == "grows" and not channel.exact and one.verdict != "grows"
        ]
        climbs = [one.climb_remark for one in self.recordings if one.climb_remark]
        kept = [ratio.text for one in self.recordings for ratio in one.ratios if not ratio.over]
        return self.garbage + noisy + climbs + kept + self._of_simulation()

    def _of_simulation(self) -> list[str]:
        """Remarks on a simulation's figures, once each, with the names of those that each concerns."""
        names: dict[str, list[str]] = {}
        measured = [(one.name, one.remarks) for one in self.recordings] + [
            (one.test, one.remarks) for one in self.tests
        ]
        for name, remarks in measured:
            for remark in remarks:
                names.setdefault(remark, []).append(name)
        return [f"{remark}{'' if len(which) == len(measured) else _some(which)}" for remark, which in names.items()]

    @property
    def garbage(self) -> list[str]:
        """One line for each recording whose samples make what only the garbage collector frees."""
        return [f"{one.name}: {one.garbage_text}" for one in self.recordings if one.garbage_text]

    @property
    def absences(self) -> list[str]:
        """One line a reason: what the peaks leave out, which figures are absent, and why."""
        by_reason: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for (figure, reason), names in self._absent().items():
            by_reason.setdefault((reason, tuple(names)), []).append(figure)
        besides_bytes = max((one.besides_bytes for one in self.recordings), default=0)
        lines = (
            [f"peaks leave out {format_bytes(besides_bytes)} that others kept alive throughout"]
            if besides_bytes
            else []
        )
        for (reason, which), figures in by_reason.items():
            some = "" if len(which) == len(self.recordings) else _some(which)
            lines.append(f"{', '.join(figures)} not measured: {reason}{some}")
        return lines + self._without_breakdown()

    def _without_breakdown(self) -> list[str]:
        """One line a reason why the peaks of marked tests were not broken down."""
        names: dict[str, list[str]] = {}
        for test in self.tests:
            if "breakdown" in test.absent:
                names.setdefault(test.absent["breakdown"], []).append(test.test)
        return [f"breakdown not measured: {reason}{_some(which)}" for reason, which in names.items()]

    def _absent(self) -> dict[tuple[str, str], list[str]]:
        """Names of recordings by figure and reason."""
        names: dict[tuple[str, str], list[str]] = {}
        for one in self.recordings:
            for figure, reason in one.absent.items():
                names.setdefault((figure, reason), []).append(one.name)
        return names

    @property
    def measured_lines(self) -> list[str]:
        """ "measured: CUDA allocator, torch 2.13.0", and where no GPU was there a line that says so."""
        if not self.environment:
            return ["nothing was measured"]
        source = str(self.environment.get("source", ""))
        lines = [f"measured: {source}, torch {self.environment.get('torch')}"]
        if source.startswith("CPU"):
            lines.append("not measured on a GPU: figures are of the same tensors on the CPU")
        return lines

    def to_json(self) -> dict[str, Any]:
        """The report that `--vram-report` writes (schema 1)."""
        return {
            "schema": SCHEMA,
            "environment": dict(self.environment),
            "headline": self.headline,
            "modes": [one.to_json() for one in self.recordings],
            "tests": [test.to_json() for test in self.tests],
            "failures": [asdict(failure) for failure in self.failures],
            "failed_otherwise": list(self.otherwise),
            "missing": list(self.missing),
            "missing_fails": self.missing_fails,
            "failed_besides": self.failed_besides,
            "interrupted": self.interrupted,
            "saved": dict(self.saved),
        }


def merged_environment(environments: Iterable[Mapping[str, object]]) -> dict[str, object]:
    """One environment of several; where they differ (each worker has its own GPU) the values side by side."""
    merged: dict[str, object] = {}
    for environment in environments:
        for fact, value in environment.items():
            known = merged.setdefault(fact, value)
            if value != known and str(value) not in str(known).split(" and "):
                merged[fact] = f"{known} and {value}"
    return merged


def _rank(one: RecordingSummary) -> tuple[bool, int]:
    """Failing ones by how bad they are, then those without a decision, then all others as they were made."""
    decided = one.outcome not in NEEDS_ATTENTION | NO_DECISION
    return not one.needs_attention, len(OUTCOMES) if decided else OUTCOMES.index(one.worst)


def _tests(count: int) -> str:
    return "test" if count == 1 else "tests"


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names) if len(names) <= _MOST_NAMES else f"{names[0]} and {len(names) - 1} more"
    return f" ({shown})"
