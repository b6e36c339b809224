"""Does it need less than the reference, and how much? The same samples, paired one by one.

Arithmetic on numbers: no device, file or clock. Where the lengths N of the inputs are known, the difference to the
reference is fitted by a + bN + cN^2, and a difference that bends upwards is called by its name: N x N maps.

A ratio says nothing about growth, and can't see a fault below the maximum of a pass: what is allocated and freed while
less is alive than at the sample's peak moves no figure here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from vram.errors import Inconclusive
from vram.recording import Recording, check_recording
from vram.units import format_bytes

_SHOWN = 8  # samples shown on the terminal
_EXPLAINED = 0.9  # of what a line leaves over, before a bend counts as one
_BLIND = "this can't see a fault below the maximum of a pass"


@dataclass(frozen=True)
class Fit:
    """Least squares a + bN + cN^2 of the difference to the reference; bytes, bytes a token, bytes a pair of tokens.

    `quadratic` says whether it bends upwards: the square explains nine tenths of what the best line leaves over.
    """

    a: float
    b: float
    c: float
    quadratic: bool

    def __str__(self) -> str:
        return f"{self.a:,.0f} {self.b:+,.1f} N {self.c:+,.3f} N^2 bytes"


@dataclass(frozen=True)
class Ratio:
    """A recording beside its reference. `needed_bytes` and `reference_bytes` are paired by `samples` (their numbers).

    `allowed_bytes` is `at_most` of the reference's figure and the tolerance. `lengths` are the inputs' where known.
    """

    name: str
    reference: str
    channel: str
    at_most: Fraction
    samples: tuple[int, ...]
    needed_bytes: tuple[int, ...]
    reference_bytes: tuple[int, ...]
    allowed_bytes: tuple[int, ...]
    lengths: tuple[int, ...] | None = None
    fit: Fit | None = None

    @property
    def ratios(self) -> tuple[float, ...]:
        """Needed over reference, sample by sample; 1 where both are 0, infinite where only the reference is."""
        return tuple(
            needed / reference if reference else (math.inf if needed else 1.0)
            for needed, reference in zip(self.needed_bytes, self.reference_bytes, strict=True)
        )

    @property
    def over(self) -> tuple[int, ...]:
        """Positions of the samples that need more than they are allowed, worst first."""
        excess = [need - allowed for need, allowed in zip(self.needed_bytes, self.allowed_bytes, strict=True)]
        return tuple(sorted((i for i, by in enumerate(excess) if by > 0), key=lambda i: -self.ratios[i]))

    @property
    def ratio(self) -> float:
        """The ratio of the sample that saves least: the one that decides."""
        return max(self.ratios)

    def __str__(self) -> str:
        low, high = self._times(min(self.ratios)), self._times(max(self.ratios))
        return (
            f"{self.name} needs {low} to {high} the {self.channel} of {self.reference} "
            f"(median {self._times(float(np.median(self.ratios)))}, at most {float(self.at_most):g} allowed)"
        )

    def _times(self, ratio: float) -> str:
        """Three digits, or six where a ratio would read like the allowed one and is not."""
        alike = ratio != self.at_most and round(ratio, 3) == round(float(self.at_most), 3)
        return f"{ratio:.{6 if alike else 3}f} x"

    def summary(self) -> dict[str, Any]:
        """The ratio for JSON: `ratio` is None where the reference needs nothing."""
        return {
            "reference": self.reference,
            "channel": self.channel,
            "at_most": float(self.at_most),
            "ratio": self.ratio if math.isfinite(self.ratio) else None,
            "over": len(self.over),
            "text": str(self),
        }

    def explanation(self) -> str:
        """Why it is too much, in at most 25 lines: the samples, how it goes with the length, what it can't see."""
        over = self.over
        lines = [f"{self}: too much in {len(over)} of {len(self.samples)} samples"]
        for i in over[:_SHOWN]:
            length = f" (N = {self.lengths[i]:,})" if self.lengths else ""
            lines.append(
                f"  sample {self.samples[i]}{length} needs {self.needed_bytes[i]:,} B "
                f"({format_bytes(self.needed_bytes[i])}), {self.needed_bytes[i] - self.allowed_bytes[i]:,} B over the "
                f"allowed {self.allowed_bytes[i]:,} B: {self._times(self.ratios[i])} {self.reference_bytes[i]:,} B"
            )
        if len(over) > _SHOWN:
            lines.append(f"  and {len(over) - _SHOWN} more samples")
        return "\n".join([*lines, *self._by_length(), f"  {_BLIND}"])

    def _by_length(self) -> list[str]:
        if self.lengths is None:
            return ["  by input length: not known; give lengths="]
        if self.fit is None:
            return [f"  by input length: {len(set(self.lengths))} different, 4 are needed to tell a line from a bend"]
        lines = [f"  needed - reference = {self.fit}, for inputs of N = {min(self.lengths):,} to {max(self.lengths):,}"]
        if self.fit.quadratic:
            longest, c = max(self.lengths), self.fit.c
            lines.append(
                f"  quadratic: {format_bytes(round(c * longest**2))} of it at N = {longest:,}, as {c / 4:,.3g} maps of "
                f"N x N in float32 are, or {c / 2:,.3g} in float16"
            )
        return lines


def compare(
    recording: Recording,
    reference: Recording,
    channel: str = "requested_peak",
    *,
    at_most: float | Fraction,
    besides_bytes: int = 0,
    above_start: bool = False,
    lengths: Sequence[int] | None = None,
    samples: Iterable[int] | None = None,
) -> Ratio:
    """`recording` beside `reference`: each sample's highest reading after warm-up, less `besides_bytes`.

    `besides_bytes` is what both hold all along and the ratio does not mean (the weights); with `above_start` it is what
    was alive before the first sample of each; `lengths` has one input
    length a sample of the lap; `samples` chooses some of the lap's samples by number. Raises Inconclusive where the
    channel was not measured in both, they were not measured alike, or all is well and one of them allocated nothing;
    ValueError as `judge_ratio` does.
    """
    for side in (recording, reference):
        check_recording(side, channel)
    _check_alike(recording, reference, channel)
    needed, base = (side.channels[channel][side.warmup_laps :].max(axis=0) for side in (recording, reference))
    if needed.size != base.size:
        raise ValueError(f"a recording and its reference must have the same samples, got {needed.size} and {base.size}")
    if lengths is not None and len(lengths) != needed.size:
        raise ValueError(f"lengths must hold one length a sample of the lap, {needed.size}, got {len(lengths)}")
    chosen = list(range(needed.size) if samples is None else samples)
    if any(not 0 <= number < needed.size for number in chosen):
        raise ValueError(f"samples must be in 0..{needed.size - 1}, got {chosen}")
    ratio = judge_ratio(
        needed[chosen] - recording.besides_bytes(channel, besides_bytes, above_start=above_start),
        base[chosen] - reference.besides_bytes(channel, besides_bytes, above_start=above_start),
        at_most,
        tolerance_bytes=max(side.tolerance_bytes.get(channel, 0) for side in (recording, reference)),
        lengths=None if lengths is None else [lengths[number] for number in chosen],
        samples=chosen,
        name=recording.title,
        reference=reference.title,
        channel=channel,
    )
    for side in (recording, reference):
        if not ratio.over and (reason := side.unseen(channel)):
            raise Inconclusive(f"{side.title}: {reason}")
    return ratio


def _check_alike(recording: Recording, reference: Recording, channel: str) -> None:
    """Raise Inconclusive unless both measured `channel`, in one environment."""
    for side in (recording, reference):
        if channel not in side.channels:
            reason = side.absent.get(channel, "no meter reads it")
            raise Inconclusive(f"{side.title}: {channel} was not measured: {reason}")
        if side.not_run:
            raise Inconclusive(f"{side.title}: {side.unseen(channel)}")
    ours, theirs = recording.environment, reference.environment
    for fact in sorted(ours.keys() | theirs.keys()):
        if ours.get(fact) != theirs.get(fact):
            raise Inconclusive(
                f"{recording.title} and {reference.title} were not measured alike: "
                f"{fact} is {ours.get(fact)} and {theirs.get(fact)}"
            )


def judge_ratio(
    needed_bytes: npt.ArrayLike,
    reference_bytes: npt.ArrayLike,
    at_most: float | Fraction,
    *,
    tolerance_bytes: int = 0,
    lengths: Sequence[int] | None = None,
    samples: Sequence[int] | None = None,
    name: str = "recording",
    reference: str = "reference",
    channel: str = "requested_peak",
) -> Ratio:
    """Pair the bytes of two runs over the same samples, int (samples,) each; `Ratio.over` is empty where all is well.

    Exactly `at_most` times the reference, and the tolerance, is still allowed; `at_most` is read as the decimal number
    it prints as. `samples` are the numbers that the samples are known by. Raises ValueError for figures or lengths that
    don't pair up, no samples, and an `at_most` that is no number above 0.
    """
    needed, base = [int(n) for n in np.asarray(needed_bytes)], [int(n) for n in np.asarray(reference_bytes)]
    numbers = tuple(range(len(needed)) if samples is None else samples)
    if not len(needed) == len(base) == len(numbers) or not needed:
        raise ValueError(
            f"a recording and its reference must have the same samples, 1 or more, got {len(needed)} and {len(base)}"
        )
    if lengths is not None and len(lengths) != len(needed):
        raise ValueError(f"lengths must hold one length a sample, got {len(lengths)} for {len(needed)} samples")
    factor = _fraction(at_most)
    return Ratio(
        name=name,
        reference=reference,
        channel=channel,
        at_most=factor,
        samples=numbers,
        needed_bytes=tuple(needed),
        reference_bytes=tuple(base),
        allowed_bytes=tuple(math.floor(factor * n_bytes) + tolerance_bytes for n_bytes in base),
        lengths=None if lengths is None else tuple(int(length) for length in lengths),
        fit=None if lengths is None else fit_by_length(np.subtract(needed, base), lengths, tolerance_bytes),
    )


def fit_by_length(difference_bytes: npt.ArrayLike, lengths: Sequence[int], tolerance_bytes: int = 0) -> Fit | None:
    """a + bN + cN^2 through `difference_bytes` (samples,); None for fewer than 4 different lengths: any 3 fit."""
    if len(set(lengths)) < 4:
        return None
    longest = max(lengths)
    # In units of the longest length: N^2 beside 1 would cost the digits that a small c needs.
    n = np.asarray(lengths, dtype=np.float64) / longest
    y = np.asarray(difference_bytes, dtype=np.float64)
    line, bend = np.vander(n, 2), np.vander(n, 3)
    by_line, by_bend = np.linalg.lstsq(line, y)[0], np.linalg.lstsq(bend, y)[0]
    left_by_line, left_by_bend = float(((y - line @ by_line) ** 2).sum()), float(((y - bend @ by_bend) ** 2).sum())
    c, b, a = by_bend
    sagitta_bytes = c * (n.max() - n.min()) ** 2 / 4  # how far the bend leaves its chord
    explains = left_by_bend <= (1 - _EXPLAINED) * left_by_line
    return Fit(
        a=float(a),
        b=float(b) / longest,
        c=float(c) / longest**2,
        quadratic=bool(explains and sagitta_bytes > max(1, tolerance_bytes)),
    )


def _fraction(at_most: float | Fraction) -> Fraction:
    """0.29 means 29/100, so that exactly 29 of 100 bytes are allowed."""
    try:
        factor = Fraction(str(at_most))
    except ValueError:
        factor = Fraction(0)
    if isinstance(at_most, bool) or factor <= 0:
        raise ValueError(f"at_most must be a number above 0, as in 0.8, got {at_most!r}")
    return factor


Level, judge_level = Ratio, judge_ratio  # their former names
