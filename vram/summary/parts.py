"""Parts of a recording's summary: its channels, and what it was compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vram.summary.at_peak import way_out_lines
from vram.text import rate_text, size_text

PEAK = "requested_peak"  # the channel that limits and budgets mean where they name none
GARBAGE = "garbage"  # of a check: what only the collector frees

Kind = Literal["growth", "budget", "limit", "ratio", "base"]
Status = Literal["passed", "over", "new", "inconclusive"]


@dataclass(frozen=True)
class Check:
    """One comparison of a recording: with a budget, a literal limit, a ratio, a base in the history, or stability.

    `text` says it in one line. `figure_bytes` is the figure that was compared, the most of `channel` less
    `besides_bytes`, which others of the process kept alive throughout. `over_bytes` is its excess, 0 if it is allowed.
    `limit_headroom` is how much of the limit is room above a recorded figure ("2%"), None without any.
    """

    kind: Kind
    status: Status
    text: str
    channel: str = PEAK
    figure_bytes: int | None = None
    limit_bytes: int | None = None
    besides_bytes: int = 0
    over_bytes: int = 0
    limit_headroom: str | None = None

    @property
    def compares_with(self) -> tuple[object, ...]:
        """The figure and its limit or base: equal where a check was made again."""
        without_limit = self.kind == "base" or self.limit_bytes is None
        return self.kind, self.channel, self.limit_bytes, self.besides_bytes, self.text if without_limit else ""

    @property
    def room_bytes(self) -> int | None:
        """Bytes that the peak has left below a budget or limit; None for a check of anything else."""
        if self.channel != PEAK or self.kind not in ("budget", "limit"):
            return None
        return None if self.figure_bytes is None or self.limit_bytes is None else self.limit_bytes - self.figure_bytes


@dataclass(frozen=True)
class RatioSummary:
    """A recording beside its reference: `ratio` of the sample that decides, `over` samples above `at_most`.

    `lines` say what that sample's peak is made of, and `suggestions` are ways out of it, where it is over.
    """

    reference: str
    ratio: float | None
    over: int
    text: str
    channel: str = PEAK
    at_most: float | None = None
    lines: tuple[str, ...] = ()
    suggestions: tuple[Mapping[str, Any], ...] = ()

    @property
    def why_lines(self) -> list[str]:
        """Ways out, then what the peak is made of; nothing where it is not over."""
        return [*way_out_lines(vars(self)), *self.lines]

    def to_json(self) -> dict[str, Any]:
        """Ready for a report."""
        return {name: one for name, one in vars(self).items() if one or name not in ("lines", "suggestions")}


@dataclass(frozen=True)
class ChannelSummary:
    """One channel: its readings, `bytes` of shape (laps, samples), and its verdict; None where growth is not judged."""

    exact: bool
    bytes: Sequence[Sequence[int]]
    before_bytes: int
    tolerance_bytes: int = 0
    verdict: str | None = None
    bytes_per_sample: float | None = None
    interval_bytes: Sequence[float] | None = None
    onset_run: int | None = None
    resolution_bytes: int | None = None
    rare_leak_bound: float | None = None
    climb_bytes: int | None = None
    late_climb_bytes: int | None = None

    @property
    def most_bytes(self) -> int:
        """The highest reading."""
        return max(map(max, self.bytes))

    @property
    def last_bytes(self) -> int:
        """The reading after the last sample."""
        return self.bytes[-1][-1]

    @property
    def growth_text(self) -> str:
        """ "4,096 B" a sample; of a plateau that climbed, also how far. "-" where growth was not judged."""
        return f"{rate_text(self.bytes_per_sample)}{self.climb_text and '; '}{self.climb_text}"

    @property
    def climb_text(self) -> str:
        """ "1.00 MiB above the start" of a plateau that is; "" of anything else."""
        climbed = self.verdict == "plateau" and self.climb_bytes is not None and self.climb_bytes > 0
        return f"{size_text(self.climb_bytes)} above the start" if climbed else ""
