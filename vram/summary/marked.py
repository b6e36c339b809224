"""One test with markers, as every surface shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vram.summary.breakdown import Breakdown
from vram.summary.recording import NEEDS_ATTENTION, NO_DECISION
from vram.text import apart

_LEFT_OUT = ("remarks", "base_lines", "breakdown", "absent")  # of a report, where there is nothing


@dataclass(frozen=True)
class MarkedSummary:
    """One test with markers: bytes above what was alive when its body began, and those it left behind.

    `regressions` say what it needs more than its base in the history; `new`, that it has none, which failed the test
    where `new_fails`; `inconclusive`, why the figures say nothing, or could not be compared. `base_lines` say what the
    peak has more than its base's, `lines` what was alive at it and what was kept, as far as it was looked for.
    `remarks` are those of a recording. `breakdown` has the peak by line; where it was looked for and is None, `absent`
    says why.
    """

    test: str
    peak_bytes: int
    limit_bytes: int | None = None
    kept_bytes: int | None = None
    allow_bytes: int | None = None
    regressions: tuple[str, ...] = ()
    expected: bool = False
    new: str = ""
    inconclusive: str = ""
    new_fails: bool = False
    lines: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    breakdown: Breakdown | None = None
    base_lines: tuple[str, ...] = ()
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def cause_lines(self) -> list[str]:
        """Lines that explain why it failed; none where it did not."""
        return [*self.base_lines, *self.lines] if self.over or self.regressions else []

    @property
    def causes(self) -> list[str]:
        """The same in short, without titles."""
        return [line.strip() for line in self.cause_lines if not line.endswith(":")]

    @property
    def over(self) -> list[str]:
        """Texts that say how many bytes it is over, one for each marker."""
        pairs = (("peak", self.peak_bytes, self.limit_bytes), ("kept", self.kept_bytes, self.allow_bytes))
        return [
            f"{figure} {n_bytes - allowed:,} B over"
            for figure, n_bytes, allowed in pairs
            if n_bytes is not None and allowed is not None and n_bytes > allowed
        ]

    @property
    def outcome(self) -> Literal["over limit", "regression", "inconclusive", "new", "expected", "passed"]:
        """The worst that is known of the test, or "expected"."""
        if not self.over and not self.regressions:
            return "inconclusive" if self.inconclusive else "new" if self.new else "passed"
        return "expected" if self.expected else "over limit" if self.over else "regression"

    @property
    def verdict(self) -> Literal["failed", "inconclusive", "passed"]:
        """How its own figures stand to its limits."""
        return "failed" if self.over else "inconclusive" if self.inconclusive else "passed"

    @property
    def needs_attention(self) -> bool:
        """True where it failed and was not expected to."""
        return self.outcome in NEEDS_ATTENTION or (self.outcome == "new" and self.new_fails)

    @property
    def absences(self) -> list[str]:
        """A line for each reason why something is not known of its peak."""
        figures: dict[str, list[str]] = {}
        for figure, reason in self.absent.items():
            figures.setdefault(reason, []).append(figure)
        return [f"{', '.join(names)} not measured: {reason}" for reason, names in figures.items()]

    @property
    def outcome_text(self) -> str:
        """The outcome, with by how many bytes it is over."""
        if self.outcome == "passed":
            return "passed"
        open_ = [self.inconclusive or self.new] if self.outcome in NO_DECISION else []
        return f"{self.outcome}: {', '.join(open_ or self.over or self.regressions)}"

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Peak above its start, limit, kept and allowed bytes as texts; a dash is no figure."""
        return (*apart(self.peak_bytes, self.limit_bytes), *apart(self.kept_bytes, self.allow_bytes))

    @property
    def properties(self) -> dict[str, int]:
        """The figures that are there."""
        names = ("peak_bytes", "limit_bytes", "kept_bytes", "allow_bytes")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def to_json(self) -> dict[str, Any]:
        """One entry of the report's `tests` (schema 1)."""
        data = {name: list(one) if isinstance(one, tuple) else one for name, one in vars(self).items()}
        data |= {"verdict": self.verdict, "outcome": self.outcome, "absent": dict(self.absent)}
        data["breakdown"] = None if self.breakdown is None else self.breakdown.to_json()
        return {name: one for name, one in data.items() if one or name not in _LEFT_OUT}
