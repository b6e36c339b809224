"""One recording as every surface shows it: its figures, its checks, and the words that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, get_args

from vram.summary.at_peak import at_peak_lines, way_out_lines
from vram.summary.breakdown import Breakdown, from_json
from vram.summary.kept import Kept, garbage_lines, kept_from_json
from vram.summary.parts import GARBAGE, PEAK, ChannelSummary, Check, RatioSummary
from vram.summary.timeline import Timeline, timeline_from_json
from vram.text import apart, rate_text, size_text
from vram.units import format_bytes

Outcome = Literal[
    "out of memory",
    "grows",
    "over limit",
    "regression",
    "undecided",
    "inconclusive",
    "new",
    "peaks alone",
    "plateau",
    "stable",
    "expected",
]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)  # worst first
NEEDS_ATTENTION = frozenset(OUTCOMES[:5])
NO_DECISION = frozenset(OUTCOMES[5:7])
_SMALL_CLIMB = 10  # a plateau that climbed by less than so many parts of what was alive before is not remarked on
_MOST_PEAK_LINES = 6
# Keys of what may be absent: of the peak, each with the key of its reason; of garbage.
_NOT_EXPLAINED, _OF_GARBAGE = {"breakdown": "no_breakdown", "suggestions": "no_suggestions"}, "breakdown of garbage"
_WAYS_OUT_OF_GROWTH = "suggestions for growth"


@dataclass(frozen=True)
class RecordingSummary:
    """One recording, as every surface shows it. A figure that was not measured is None, and `absent` says why.

    `verdict` is that of growth ("grows", "undecided", "plateau", "stable"), "out of memory", or None without one;
    `outcome` is what happened to the run. `expected`: each failure was that of a test that is expected to fail;
    `new_fails`: the budget or base that is missing failed its test.
    `nothing_allocated`: no sample took memory on the device measured, so that nothing is known of the step.
    `base_lines` say what the peak has more than that of a base that it is over.
    `garbage_bytes`: the most of one sample that only the garbage collector freed; `garbage_kinds` says what it was, and
    `garbage` has it in pieces.
    `remarks` are lines on what a simulation assumed for the figures, and what at the peak it does not count.
    """

    name: str
    laps: int | None = None
    samples: int | None = None
    verdict: str | None = None
    verdict_channel: str | None = None
    reason: str = ""
    bytes_per_sample: float | None = None
    peak_bytes: int | None = None
    budget_bytes: int | None = None
    seconds: float | None = None
    channels: Mapping[str, ChannelSummary] = field(default_factory=dict)
    marks: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, object] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    ratios: tuple[RatioSummary, ...] = ()
    explanation: Mapping[str, Any] | None = None
    at_peak: Mapping[str, Any] | None = None
    garbage: Mapping[str, Any] | None = None
    expected: bool = False
    new_fails: bool = False
    named: bool = True
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, int | float | str | None] = field(default_factory=dict)
    nothing_allocated: bool = False
    garbage_bytes: int | None = None
    garbage_kinds: tuple[str, ...] = ()
    cache_budget_bytes: int = 0
    remarks: tuple[str, ...] = ()
    base_lines: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The worst that is known of the run, or "expected"."""
        worst = self.worst
        return "expected" if self.expected and worst in NEEDS_ATTENTION else worst

    @cached_property
    def worst(self) -> Outcome:
        """`outcome`, whether or not a failure was expected."""
        statuses = {(check.kind == "base", check.status) for check in self.checks}
        over = (False, "over") in statuses or any(ratio.over for ratio in self.ratios)
        alone = self.laps == 1 and self.verdict is None and not self.nothing_allocated
        known: dict[Outcome, bool] = {
            "out of memory": self.verdict == "out of memory",
            "grows": self.verdict == "grows",
            "over limit": over,
            "regression": (True, "over") in statuses,
            "undecided": self.verdict == "undecided",
            "inconclusive": any(status == "inconclusive" for _, status in statuses)
            or (self.verdict is None and not alone),
            "new": any(status == "new" for _, status in statuses),
            "peaks alone": alone,
            "plateau": self.verdict == "plateau",
        }
        return next((outcome for outcome, true in known.items() if true), "stable")

    @property
    def needs_attention(self) -> bool:
        """True where somebody must look at it: it failed, and was not expected to."""
        return self.outcome in NEEDS_ATTENTION or (self.outcome == "new" and self.new_fails)

    @property
    def limited(self) -> Check | None:
        """The budget or limit on the peak that has least room, or that is exceeded most."""
        limits = [check for check in self.checks if check.room_bytes is not None]
        return min(limits, key=lambda check: check.room_bytes or 0, default=None)

    @property
    def besides_bytes(self) -> int:
        """Bytes that other objects of the process kept alive throughout, and that the limit does not mean."""
        return 0 if self.limited is None else self.limited.besides_bytes

    @property
    def own_peak_bytes(self) -> int | None:
        """The peak without `besides_bytes`: the figure that is compared with `limit_bytes`."""
        return None if self.peak_bytes is None else self.peak_bytes - self.besides_bytes

    @property
    def limit_bytes(self) -> int | None:
        """The budget or limit on the peak; None where there is none."""
        return None if self.limited is None else self.limited.limit_bytes

    @property
    def over_limit_bytes(self) -> int:
        """Bytes by which the peak is over `limit_bytes`; 0 where it is not."""
        return 0 if self.limited is None else self.limited.over_bytes

    @property
    def peak_text(self) -> str:
        """The own peak as text; to the byte where it would read like the limit and is another."""
        return apart(self.own_peak_bytes, self.limit_bytes)[0]

    @property
    def limit_text(self) -> str:
        """The limit as text, "3.98 KiB (+2%)" where it is a recorded figure and headroom; "-" where there is none."""
        text = apart(self.own_peak_bytes, self.limit_bytes)[1]
        return f"{text} (+{self.limit_headroom})" if self.limit_headroom else text

    @property
    def limit_headroom(self) -> str | None:
        """How much of the limit is room above a recorded figure: "2%", "64 MiB"; None where it has none."""
        return None if self.limited is None else self.limited.limit_headroom

    @property
    def growth_text(self) -> str:
        """ "4,096 B" a sample; of a plateau that climbed, also how far. "-" where growth was not judged."""
        climb = "" if self._decided is None else self._decided.climb_text
        return f"{rate_text(self.bytes_per_sample)}{climb and '; '}{climb}"

    @property
    def climb_bytes(self) -> int | None:
        """How far a plateau is above the start of the recording; None of anything else."""
        return self._decided.climb_bytes if self._decided is not None and self._decided.climb_text else None

    @property
    def climb_remark(self) -> str:
        """A climb of more than was declared, or than a tenth of what was alive before, in one line; else ""."""
        channel, climb_bytes = self._decided, self.climb_bytes
        if channel is None or climb_bytes is None:
            return ""
        declared, before = self.cache_budget_bytes, channel.before_bytes
        if climb_bytes <= (declared or before // _SMALL_CLIMB):
            return ""
        share = f"{100 * climb_bytes / before:.0f} % of what was alive before" if before else "where nothing was alive"
        against = f"more than the {size_text(declared)} declared" if declared else share
        late = channel.late_climb_bytes or 0
        after = f"; {size_text(late)} of it came after warm-up" if late > 0 else ""
        return f"{self.name}: a plateau, and {channel.climb_text}, {against}{after}"

    @property
    def _decided(self) -> ChannelSummary | None:
        return self.channels.get(self.verdict_channel or "")

    @property
    def runs_text(self) -> str:
        """ "5 x 20": laps x samples."""
        return "-" if self.laps is None else f"{self.laps} x {self.samples}"

    @property
    def seconds_text(self) -> str:
        """Seconds of all runs, with one digit."""
        return "-" if self.seconds is None else f"{self.seconds:.1f}"

    @property
    def softmax_peak_bytes(self) -> int | None:
        """The largest softmax of attention, where a suite measures it."""
        figure = self.notes.get("softmax_peak_bytes")
        return figure if isinstance(figure, int) else None

    @property
    def reasons(self) -> list[str]:
        """Why the outcome is what it is, a line each: growth, then each limit, ratio and base that failed or is new."""
        prefix = "" if self.reason.startswith("out of memory") else f"{self.verdict or 'inconclusive'}: "
        no_verdict = self.verdict is None and (self.laps != 1 or self.nothing_allocated)
        said = any(check.kind == "growth" for check in self.checks)
        speaks = self.verdict in ("out of memory", "grows", "undecided") or (no_verdict and not said)
        lines = [f"{self.name}: {prefix}{self.reason}"] * speaks
        lines += [f"{self.name}: {check.text}" for check in self.checks if check.status != "passed"]
        return list(dict.fromkeys(lines)) + [ratio.text for ratio in self.ratios if ratio.over]

    @property
    def garbage_text(self) -> str:
        """Garbage that only the collector frees, in one line; "" where it is nothing, or not measured."""
        if not self.garbage_bytes:
            return ""
        text = garbage_text(self.garbage_bytes, self.garbage_kinds)
        return f"{text}: {self.garbage_kept.piece_lines(2)[0]}" if self.garbage_kept is not None else text

    @property
    def explanation_lines(self) -> list[str]:
        """Allocations with their holders, or what was alive when memory ran out, as lines."""
        data = self.explanation or {}
        lines: list[str] = []
        for line in data.get("lines", ()):
            if isinstance(line, str):
                lines.append(line)
                continue
            caller = f" (from {line['caller']})" if line.get("caller") else ""
            made = " ".join(part for part in (line["op"], line["dtype"], line["shape"]) if part)
            lines.append(f"{line['bytes_per_sample']:,.0f} B a sample: {line['where']}{caller}: {made}")
            if line.get("holder"):
                lines.append(f"  held by: {line['holder']}")
        kept = [] if self.growth_kept is None else self.growth_kept.rate_lines
        return lines + kept + ([str(data["note"])] if data.get("note") else [])

    @property
    def peak_lines(self) -> list[str]:
        """Lines of code that a peak over its limit, or above its base, is made of; none of any other."""
        at_peak = self.at_peak if self._is_peak_over else None
        return at_peak_lines(at_peak, _MOST_PEAK_LINES) if at_peak and at_peak["lines"] else []

    @property
    def way_out_lines(self) -> list[str]:
        """Ways out of growth, and of a peak over its limit or above its base; none of any other."""
        return [*way_out_lines(self.explanation or {}), *self._peak_way_out_lines]

    @property
    def _peak_way_out_lines(self) -> list[str]:
        return way_out_lines(self.at_peak) if self._is_peak_over and self.at_peak else []

    @property
    def _is_peak_over(self) -> bool:
        return any(check.status == "over" and check.channel == PEAK for check in self.checks)

    @property
    def suggestions(self) -> list[dict[str, Any]]:
        """Ways out that are certain: "pattern" and "text" of each, of growth with "saves_bytes_per_sample", and of the
        peak, over its limit or not, with "saves_bytes"."""
        explained = (self.explanation or {}, self.at_peak or {}, *map(vars, self.ratios))
        return list({one["text"]: one for each in explained for one in each.get("suggestions", ())}.values())

    @property
    def over_base_lines(self) -> list[str]:
        """Ways out of the peak, what it has more than its base's, and what it is."""
        return [*self._peak_way_out_lines, *self.base_lines, *self.peak_lines]

    @property
    def why_lines(self) -> list[str]:
        """Everything that explains a failure: who keeps what grows, ways out, what is more than the base, what the peak
        is, what garbage is."""
        return [
            *self.explanation_lines,
            *way_out_lines(self.explanation or {}),
            *self.over_base_lines,
            *self.garbage_lines,
            *self.ratio_lines,
        ]

    @property
    def ratio_lines(self) -> list[str]:
        """Ways out of a peak whose ratio is over, and the lines of code that it is made of."""
        return [line for ratio in self.ratios for line in ratio.why_lines]

    @property
    def short_why_lines(self) -> list[str]:
        """The way out that saves most, and the first lines of the first explanation that there is."""
        why = self.cause_lines or self.base_lines[:3] or self.peak_lines[:3] or self.garbage_lines[:3]
        why = why or self.ratio_lines[:3]
        return [*self.way_out_lines[:1], *why]

    @property
    def garbage_lines(self) -> list[str]:
        """Lines of code that make garbage over its limit; none of any other."""
        over = any(check.status == "over" and check.channel == GARBAGE for check in self.checks)
        return [] if not over or self.garbage_kept is None else garbage_lines(self.garbage_kept)

    def explained(self, at_peak: Mapping[str, Any] | None, why: str) -> RecordingSummary:
        """The same with what its peak is made of; where that is not known, or does not add up, with the reason."""
        gaps = {name: at_peak.get(key, "") for name, key in _NOT_EXPLAINED.items()} if at_peak else {"breakdown": why}
        absent = {name: text for name, text in self.absent.items() if name not in _NOT_EXPLAINED}
        absent |= {name: text for name, text in gaps.items() if text}
        found, rest = _apart(at_peak)
        return replace(self, at_peak=rest, absent=absent).with_garbage(found)

    def with_growth(self, explanation: Mapping[str, Any]) -> RecordingSummary:
        """The same with the explanation of its growth, as `vram.explanation.growth` has it."""
        found, rest = _apart(explanation)
        absent = {name: text for name, text in self.absent.items() if name != _WAYS_OUT_OF_GROWTH}
        absent |= {_WAYS_OUT_OF_GROWTH: explanation["no_suggestions"]} if "no_suggestions" in explanation else {}
        return replace(self, explanation=rest, absent=absent).with_garbage(found)

    def with_garbage(self, found: Mapping[str, Any]) -> RecordingSummary:
        """The same with its garbage in pieces, or why not, as `vram.explanation.collected` has it; `{}` is neither."""
        if not found:
            return self
        absent = {name: text for name, text in self.absent.items() if name != _OF_GARBAGE}
        absent |= {_OF_GARBAGE: found["no_garbage"]} if "no_garbage" in found else {}
        return replace(self, garbage=found.get("garbage", self.garbage), absent=absent)

    @cached_property
    def breakdown(self) -> Breakdown | None:
        """Pieces of the peak; None where that was not traced, or does not add up."""
        data = (self.at_peak or {}).get("breakdown")
        return None if data is None else from_json(data)

    @cached_property
    def timeline(self) -> Timeline | None:
        """The sample of the peak, operation by operation; None where the peak has no breakdown."""
        data = (self.at_peak or {}).get("timeline")
        return None if data is None else timeline_from_json(data)

    @property
    def timeline_snapshot(self) -> str:
        """Path of the timeline's file for PyTorch's memory viewer; "" where none was written."""
        return str((self.at_peak or {}).get("snapshot") or "")

    @cached_property
    def growth_kept(self) -> Kept | None:
        """Pieces of what grows; None where that was not traced, or nothing was seen to grow."""
        data = (self.explanation or {}).get("breakdown")
        return None if data is None else kept_from_json(data)

    @cached_property
    def garbage_kept(self) -> Kept | None:
        """Pieces of the garbage; None where that was not traced, or is more than was recorded."""
        return None if self.garbage is None else kept_from_json(self.garbage)

    @property
    def cause_lines(self) -> list[str]:
        """The line that makes most of the growth, and who keeps that; nothing where no line was seen to grow."""
        lines = (self.explanation or {}).get("lines") or ()
        if not lines or isinstance(lines[0], str):
            return []
        return self.explanation_lines[: 2 if lines[0].get("holder") else 1]

    @property
    def snapshot(self) -> str:
        """Path of the file for PyTorch's memory viewer that the explanation wrote; "" where there is none."""
        return str((self.explanation or {}).get("snapshot") or "")

    def to_json(self) -> dict[str, Any]:
        """One entry of the report's `modes` (schema 1)."""
        data = {name: vars(self)[name] for name in _FIELDS}
        data |= {name: dict(data[name]) for name in ("marks", "environment", "absent", "facts")}
        data["channels"] = {name: dict(vars(channel)) for name, channel in self.channels.items()}
        data["garbage_kinds"], data["remarks"] = list(self.garbage_kinds), list(self.remarks)
        data["base_lines"], data["suggestions"] = list(self.base_lines), self.suggestions
        data["checks"] = [dict(vars(each)) for each in self.checks]
        data["ratios"] = [each.to_json() for each in self.ratios]
        for name in ("explanation", "at_peak", "garbage", "remarks", "base_lines", "suggestions"):
            if not data[name]:
                del data[name]
        notes = {"softmax_peak_bytes": None, **data.pop("notes")}
        derived = {name: getattr(self, name) for name in _DERIVED}
        return {"mode": data.pop("name"), "outcome": self.outcome, **data, **derived, **notes}


def _apart(found: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Garbage that a traced rerun found, and the rest."""
    if found is None:
        return {}, None
    garbage = {name: found[name] for name in ("garbage", "no_garbage") if name in found}
    return garbage, {name: value for name, value in found.items() if name not in garbage}


def garbage_text(n_bytes: int, kinds: Sequence[str]) -> str:
    """ "a sample makes up to 16.00 KiB that only the garbage collector frees (Session, float32 [64, 64])"."""
    made_of = f" ({', '.join(kinds)})" if kinds else ""
    return f"a sample makes up to {format_bytes(n_bytes)} that only the garbage collector frees{made_of}"


_DERIVED = ("besides_bytes", "own_peak_bytes", "limit_bytes", "limit_headroom", "reasons", "climb_bytes")
_FIELDS = tuple(RecordingSummary.__dataclass_fields__)
_OWN = {*_FIELDS, "suggestions", *RecordingSummary("").to_json()}
OWN_KEYS = frozenset(_OWN - {"softmax_peak_bytes"})  # no note may be called so
