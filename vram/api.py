"""The functions that users call: replay samples, then assert that memory is stable, within a limit, or a ratio."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vram.budgets.file import Budget
from vram.cards import Card
from vram.errors import (
    GarbageExceeded,
    Inconclusive,
    MemoryGrowth,
    NotRecorded,
    OutOfMemory,
    PeakExceeded,
    RatioExceeded,
    Undecided,
)
from vram.meters import Meter
from vram.recording import Recording, check_recording
from vram.replaying.limits import Listener
from vram.replaying.loop import Plan, planned, record
from vram.replaying.rerunnable import loosen
from vram.summary import GARBAGE, Check, RatioSummary, Status, garbage_text
from vram.summary.kept import garbage_lines, kept_from_json
from vram.text import apart, rate_text
from vram.units import format_bytes, parse_bytes
from vram.verdict.channels import PASSING, convicting, overall, verdicts
from vram.verdict.growth import Forecast, Verdict
from vram.verdict.peak import judge_peak
from vram.verdict.ratio import Ratio, compare

if TYPE_CHECKING:
    from vram.explanation.peak import PeakExplanation

Sample = TypeVar("Sample")
_MOST_LINES = 25  # of a failure, on a terminal
_SUMS = 2  # lines of a peak by category and by module
_IN_WORDS = {
    "requested": "live memory",
    "requested_peak": "peak memory",
    "driver": "memory that is not PyTorch's",
}

# pytest then shows the test's own line, and not how a sample was replayed; other errors of a step keep every frame.
hidden_on_oom = methodcaller("errisinstance", OutOfMemory)


def replay(
    step: Callable[[Sample], object],
    samples: Iterable[Sample],
    *,
    laps: int | None = None,
    warmup_laps: int = 1,
    meters: Sequence[Meter] | None = None,
    name: str | None = None,
    allocates: bool = True,
    cache_budget: str | int | None = None,
    max_runs: int | None = None,
    max_seconds: float | None = None,
    progress: Listener | None = None,
) -> Recording:
    """Run `step` on every sample, lap after lap, and return all readings.

    `laps` (default 5, warm-up included) is where the first look is taken; where an exact channel, or the driver's,
    looks suspicious, laps are added before this returns, up to what `vram.verdict.growth` asks for. `laps=1` is for
    peaks alone, with no verdict on growth. After each step the result is dropped, garbage collected, the device waited
    for and every meter read. Nothing that `step` made is kept.

    Where no sample allocates anything on the device measured, the figures say nothing of `step`, and checks that would
    pass are inconclusive; `allocates=False` says that it need not. `cache_budget` ("48 MiB", or bytes) is what a
    bounded cache may fill before growth counts.

    `max_runs` and `max_seconds` end a replay that the rule has not decided: it is undecided then, with what is known,
    never stable. A run that has begun is finished, and the rerun that explains is not counted. `progress` is called
    with a `vram.replaying.limits.Progress` after each run, and with None at the end.

    Raises ValueError for no samples, too few laps, a size that cannot be read or a limit that lets nothing run;
    TypeError for arguments of a wrong type, and where `step` returns work that has not run (a generator, a coroutine,
    an async generator, a map or a filter, or a container or an iterator of such); OutOfMemory (with sample, line, bytes
    and what was alive) where a step runs out of memory; any other exception of `step` comes through unchanged.
    """
    __tracebackhide__ = hidden_on_oom
    plan = planned(
        step,
        samples,
        laps=laps,
        warmup_laps=warmup_laps,
        meters=meters,
        name=name,
        allocates=allocates,
        cache_budget=cache_budget,
        max_runs=max_runs,
        max_seconds=max_seconds,
        progress=progress,
    )
    return replayed(plan)


def replayed(plan: Plan, then: Callable[[Recording], None] = lambda _: None) -> Recording:
    """The recording of a plan. `then` is called with it while what was alive before is out of the collector's sight.

    Raises what `replay` does of a step.
    """
    __tracebackhide__ = hidden_on_oom
    try:
        return record(plan, then)
    except OutOfMemory as error:
        failure = error
    from vram.explanation.out_of_memory import with_what_was_alive  # needs torch, which importing vram does not

    # Raised out here, no exception that is being handled holds the frames.
    raise with_what_was_alive(failure, plan.rerunnable)


def assert_stable(
    recording: Recording,
    *,
    cache_budget: str | int | None = None,
    save: Callable[[dict[str, Any]], Path] | None = None,
    card: Card | None = None,
) -> None:
    """Pass where every exact channel is stable or on a plateau, and the driver's count of this process does not grow.

    Other noisy channels are reported, and never fail a test. `cache_budget` replaces that of the replay, which needs
    fewer laps where it is given there.

    Raises MemoryGrowth, Undecided, or Inconclusive where no exact channel was measured or nothing was allocated. On
    growth the samples are run again with tracing, and the error names lines, holders and when `card` is full (the
    device's own where it is not named); `save` writes the memory viewer's snapshot of that rerun and returns its path.
    The step of the recording is let go of, either way.
    """
    __tracebackhide__ = True  # pytest then shows the test's own line
    judged = verdicts(recording, cache_budget_bytes=None if cache_budget is None else parse_bytes(cache_budget))
    channel, verdict = overall(recording, judged)
    if verdict.status in PASSING:
        loosen(recording, samples=False)
        return
    text = _growth_text(recording, channel, judged, card)
    from vram.explanation.growth import explained  # needs torch, which importing vram does not

    explanation = None
    if recording.laps >= recording.base_laps:  # else a limit was reached before anything could be judged
        explanation = explained(recording, peak=channel.endswith("_peak"), save=save)
    if explanation is not None:
        text += explanation.text(_MOST_LINES - len(text))
    outcome = MemoryGrowth if verdict.status == "grows" else Undecided
    raise outcome("\n".join(text), explanation=None if explanation is None else explanation.summary())


def assert_peak(
    recording: Recording,
    limit: str | int | Budget,
    channel: str = "requested_peak",
    *,
    besides_bytes: int = 0,
    above_start: bool = False,
) -> None:
    """Pass where no reading of `channel`, less `besides_bytes`, is over `limit`: exactly at it still passes.

    Channels are absolute: `besides_bytes` were kept alive by others throughout, and the limit does not mean them.
    With `above_start` the limit means neither those nor anything else that was alive before the first sample (the
    weights). `limit` is a size ("18 GiB"), bytes, or a `Budget`. Raises PeakExceeded, with what was alive at the peak
    by line, from running the highest sample once more; Inconclusive where the channel was not measured or nothing
    was allocated, NotRecorded (an Inconclusive) where the budget is new; ValueError for a size that cannot be read.
    """
    __tracebackhide__ = True
    check = check_peak(recording, limit, channel, besides_bytes=besides_bytes, above_start=above_start)
    raise_unless_passed(recording.title, check, explained_check(recording, check))


def check_peak(
    recording: Recording,
    limit: str | int | Budget,
    channel: str = "requested_peak",
    *,
    besides_bytes: int = 0,
    above_start: bool = False,
) -> Check:
    """The check that `assert_peak` makes of it, as every report shows it. Raises ValueError for an unreadable size."""
    check_recording(recording, channel)
    besides_bytes = recording.besides_bytes(channel, besides_bytes, above_start=above_start)
    kind: Literal["budget", "limit"] = "budget" if isinstance(limit, Budget) else "limit"
    if isinstance(limit, Budget) and limit.limit_bytes is None:
        return Check(kind, "new", limit.new_text, channel)
    limit_bytes = limit.limit_bytes if isinstance(limit, Budget) else parse_bytes(limit)
    assert limit_bytes is not None
    headroom, source = (limit.headroom_text, limit.limit_source) if isinstance(limit, Budget) else ("", "")
    if channel not in recording.channels:
        reason = recording.absent.get(channel, "no meter reads it")
        return Check(kind, "inconclusive", f"{channel} was not measured: {reason}", channel, limit_bytes=limit_bytes)
    figure_bytes = recording.peak_bytes(channel) - besides_bytes
    overrun = judge_peak(figure_bytes, limit_bytes, recording.tolerance_bytes.get(channel, 0))
    check = Check(
        kind, "passed", "", channel, figure_bytes, limit_bytes, besides_bytes, limit_headroom=headroom or None
    )
    if overrun is None and (reason := recording.unseen(channel)):
        return replace(check, status="inconclusive", text=f"inconclusive: {reason}")
    if overrun is None:
        text = "{} of {} allowed".format(*apart(figure_bytes, limit_bytes))
        return replace(check, text=f"{channel} {text}{source}")
    lap, sample = divmod(int(recording.channels[channel].argmax()), recording.samples)
    above = ", above what was alive before the first sample" * above_start
    text = f"{channel} {overrun}{source}{above}, first in sample {sample} of lap {lap}"
    return replace(check, status="over", text=text, over_bytes=overrun.excess_bytes)


def explained_check(recording: Recording, check: Check, **known: Any) -> PeakExplanation | None:
    """The explanation of a peak over its limit; None for any other check. `known` is for `explained_peak`."""
    if check.status != "over" or not check.channel.endswith("_peak"):
        return None
    from vram.explanation.peak import explained_peak  # needs torch, which importing vram does not

    return explained_peak(recording, check.channel, **known)


def explained_garbage(recording: Recording, check: Check, known: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Garbage over its limit in pieces, or why not, as `vram.explanation.collected` has it; `known` was made before."""
    if check.status != "over":
        return {}
    if known is not None:
        return {"garbage": known}
    from vram.explanation.collected import explained_garbage  # needs torch, which importing vram does not

    return explained_garbage(recording)


def raise_unless_passed(
    name: str,
    check: Check,
    explanation: PeakExplanation | None = None,
    *,
    found: Mapping[str, Any] | None = None,
) -> None:
    """Raise PeakExceeded or GarbageExceeded for what is over, NotRecorded for what is new, Inconclusive for the rest
    that did not pass."""
    __tracebackhide__ = True
    if check.status == "over":
        text = f"{name}: {check.text}"
        if check.channel == GARBAGE:
            raise GarbageExceeded("\n".join([text, *_garbage_lines(found or {})]), explanation=found)
        if explanation is None:
            raise PeakExceeded(text)
        lines = explanation.text(offer="" if check.besides_bytes else "assert_peak(..., above_start=True)")
        raise PeakExceeded("\n".join([text, *lines]), explanation=explanation.summary())
    if check.status != "passed":
        raise (NotRecorded if check.status == "new" else Inconclusive)(check.text.removeprefix("inconclusive: "))


def _garbage_lines(found: Mapping[str, Any]) -> list[str]:
    kept = kept_from_json(found["garbage"]) if "garbage" in found else None
    lines = [found["no_garbage"]] if "no_garbage" in found else [] if kept is None else garbage_lines(kept)
    return [f"  {line}" for line in lines]


def assert_garbage(recording: Recording, limit: str | int) -> None:
    """Pass where no sample, after warm-up, makes more than `limit` that only the garbage collector frees.

    Python frees such cycles in its own time, or never where `gc` is disabled: memory that a stable recording does not
    show, as a replay collects after each sample. Garbage that Python collects by itself within the sample counts, what
    the step collects by a call does not. Raises GarbageExceeded, with the lines that make it, from running the sample
    with most of it once more; Inconclusive where it was not measured or nothing was
    allocated; ValueError for a size that cannot be read.
    """
    __tracebackhide__ = True
    check = check_garbage(recording, limit)
    raise_unless_passed(recording.title, check, found=explained_garbage(recording, check))


def check_garbage(recording: Recording, limit: str | int) -> Check:
    """The check that `assert_garbage` makes of it, as every report shows it."""
    check_recording(recording)
    limit_bytes, figure_bytes = parse_bytes(limit), recording.most_garbage_bytes
    if figure_bytes is None:
        text = "inconclusive: garbage was not measured: no exact channel of live memory"
        return Check("limit", "inconclusive", text, GARBAGE, limit_bytes=limit_bytes)
    over_bytes = max(0, figure_bytes - limit_bytes)
    text = f"{garbage_text(figure_bytes, recording.garbage_kinds)}, {over_bytes:,} B over the allowed {limit_bytes:,} B"
    status: Status = "over" if over_bytes else "passed"
    if not over_bytes:
        text = "garbage {} of {} allowed".format(*apart(figure_bytes, limit_bytes))
        if reason := recording.unseen("requested"):
            status, text = "inconclusive", f"inconclusive: {reason}"
    return Check("limit", status, text, GARBAGE, figure_bytes, limit_bytes, over_bytes=over_bytes)


def assert_ratio(
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
    """Pass where no sample needs more than `at_most` times what it needs in `reference`: exactly that still passes.

    Raises RatioExceeded, which says how the difference goes with the input lengths N where `lengths` has one for each
    sample; Inconclusive and ValueError as `vram.verdict.ratio.compare` does,
    which also says what the other arguments mean.
    """
    __tracebackhide__ = True
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
    if ratio.over:
        raise ratio_exceeded(ratio, explained_ratio(recording, ratio), relative=above_start or besides_bytes != 0)


def explained_ratio(recording: Recording, ratio: Ratio, **known: Any) -> PeakExplanation | None:
    """The explanation of the worst sample's peak; None where the ratio is of another channel than a peak."""
    if not ratio.channel.endswith("_peak"):
        return None
    from vram.explanation.peak import explained_peak  # needs torch, which importing vram does not

    return explained_peak(recording, ratio.channel, sample=ratio.samples[ratio.over[0]], **known)


def ratio_summary(ratio: Ratio, explanation: PeakExplanation | None) -> RatioSummary:
    """The ratio as every report shows it, with what the error says of the peak."""
    return RatioSummary(**ratio.summary(), **({} if explanation is None else explanation.of_ratio()))


def ratio_exceeded(ratio: Ratio, explanation: PeakExplanation | None, *, relative: bool) -> RatioExceeded:
    """The error for a ratio that is over; `relative` where it leaves out something that was alive before."""
    lines = ratio.explanation().splitlines()
    if explanation is None:
        return RatioExceeded("\n".join(lines))
    offer = "" if relative else "assert_ratio(..., above_start=True)"
    lines += explanation.text(_MOST_LINES - _SUMS - len(lines), offer=offer)
    return RatioExceeded("\n".join(lines), explanation=explanation.summary())


def _rate_text(verdict: Verdict) -> str:
    return rate_text(verdict.bytes_per_sample, (verdict.low_bytes, verdict.high_bytes))


def _growth_text(
    recording: Recording, channel: str, judged: Mapping[str, Verdict], card: Card | None = None
) -> list[str]:
    verdict = judged[channel]
    grew = "grows by" if verdict.status == "grows" else "undecided whether it stops growing; so far"
    if recording.stopped and verdict.status == "undecided":
        grew = "undecided; so far"
    figures = recording.channels[channel]
    lines = [
        f"{recording.title}: {_IN_WORDS.get(channel, 'memory')} ({channel}) {grew} {_rate_text(verdict)} a sample",
        f"  {verdict.reason}",
        f"  {verdict.laps} laps of {verdict.samples} samples: {format_bytes(recording.before[channel])} before the "
        f"first, {format_bytes(int(figures[-1, -1]))} after the last",
    ]
    if verdict.onset_run is not None:
        lap, sample = divmod(verdict.onset_run, verdict.samples)
        lines.append(f"  since sample {sample} of lap {lap}")
    lines += _forecast_text(recording, channel, verdict, card)
    for other, its in judged.items():
        # A noisy channel reads otherwise in every run: it is reported where it says something.
        if other != channel and (other in recording.exact or its.status == "grows"):
            role = "" if other in convicting(recording) else ", noisy: reported, never fails a test"
            lines.append(f"  {other}: {its.status}, {_rate_text(its)} a sample{role}")
    if judged.get("requested") and "reserved" in judged:
        live, reserved = judged["requested"].status, judged["reserved"].status
        if reserved == "grows" and live in ("stable", "plateau"):
            lines.append("  reserved grows while live memory does not: fragmentation")
    return lines


def _forecast_text(recording: Recording, channel: str, verdict: Verdict, card: Card | None = None) -> list[str]:
    """When the card is full, where its size is known; else how long a GiB lasts. Empty where nothing grows."""

    def words(what: str, forecast: Forecast | None) -> list[str]:
        if forecast is None:
            return []
        latest = "never" if forecast.latest is None else f"{forecast.latest:,}"
        spread = f" (95 %: {forecast.earliest:,} to {latest})" if forecast.earliest != forecast.latest else ""
        return [f"  {what} after {forecast.expected:,} samples{spread}"]

    card_bytes = recording.environment.get("device_bytes") if card is None else card.total_bytes - card.context_bytes
    if not isinstance(card_bytes, int):
        return words("1 GiB more", verdict.samples_until(2**30))
    in_use = "reserved" if "reserved" in recording.channels else channel
    headroom_bytes = max(0, card_bytes - int(recording.channels[in_use][-1, -1]))
    which = f"a card of {format_bytes(card_bytes)}" if card is None else f"card {card}"
    return words(f"{which} is full", verdict.samples_until(headroom_bytes))
