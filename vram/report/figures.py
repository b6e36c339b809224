"""Which charts a page has of a recording and of a history, with their words: from a summary to geometry."""

from __future__ import annotations

from collections.abc import Sequence

from vram.history.compare import Change, Judged
from vram.history.criteria import GROWTH, PEAK
from vram.report.charts import Chart, Rule, Scale, Tick, spots, staircase, stairs
from vram.report.dates import Axis
from vram.report.icicle import Icicle, icicle
from vram.report.series import Series, figure_text
from vram.report.stacked import Stack, stacked
from vram.summary import Check, MarkedSummary, RecordingSummary
from vram.summary.breakdown import Breakdown, folded
from vram.summary.difference import Moved
from vram.text import packed, size_text

_LIVE = ("requested", "allocated", "driver", "reserved", "host")  # the first that was measured shows growth
_PEAKS = ("requested_peak", "allocated_peak")
_MOST_DOTS = 150
_MOST_LINES = 12


def recording_charts(one: RecordingSummary, judged: Judged | None) -> list[Chart]:
    """Growth and peak over all runs: the channel that the verdict is on, the first live one, limited ones, the peak."""
    live, peak = (next((name for name in names if name in one.channels), "") for names in (_LIVE, _PEAKS))
    limited = [check.channel for check in one.checks if check.limit_bytes is not None and check.kind != "base"]
    wanted = dict.fromkeys((one.verdict_channel or live, live, *limited, peak))
    charts = [_channel_chart(one, name, judged) for name in wanted if name in one.channels]
    return [chart for chart in charts if chart is not None]


def _channel_chart(one: RecordingSummary, name: str, judged: Judged | None) -> Chart | None:
    channel = one.channels[name]
    is_peak = name.endswith("_peak")
    limits = [_limit(check) for check in one.checks if check.channel == name]
    rules = [rule for rule in limits if rule is not None]
    base = None if judged is None or judged.base is None else judged.base
    known = None if base is None else base.entry.channels.get(name)
    if base is not None and known is not None:
        rules.append(Rule("base", known.most_bytes, f"base {size_text(known.most_bytes)} ({base.run})"))
    if not is_peak:
        rules.append(Rule("before", channel.before_bytes, f"before the first run {size_text(channel.before_bytes)}"))
    title = f"{name}, {'the most during' if is_peak else 'after'} each run"
    onset = channel.onset_run if channel.verdict == "grows" else None
    return staircase(title, channel.bytes, rules, onset=onset)


def _limit(check: Check) -> Rule | None:
    """The line of a budget or limit; it stands above what others kept alive, which the readings include."""
    if check.limit_bytes is None or check.kind not in ("budget", "limit"):
        return None
    room = f" (+{check.limit_headroom})" if check.limit_headroom else ""
    beside = f", beside {size_text(check.besides_bytes)} of others" if check.besides_bytes else ""
    text = f"{check.kind} {size_text(check.limit_bytes)}{room}{beside}"
    return Rule("limit", check.limit_bytes + check.besides_bytes, text)


def mark_charts(one: RecordingSummary) -> list[tuple[str, int, Chart]]:
    """Name of each mark, the sample that needs most there, and the chart of the bytes that were alive."""
    charts = []
    for name, mark in one.marks.items():
        channels = mark["channels"]
        first = next((channel for channel in (*_LIVE, *channels) if channel in channels), None)
        chart = None if first is None else staircase(f"{first} at each {name}", channels[first], word=name)
        if chart is not None:
            charts.append((name, mark["sample"], chart))
    return charts


def changes_of(judged: Judged | None) -> list[Change]:
    """The figures to show beside their base."""
    return [] if judged is None else [change for change in judged.changes if change.telling]


def change_text(judged: Judged | None) -> str:
    """How the peak stands to its base, in a cell; a dash where there is no base, or no peak in both."""
    peaks = [change.more_text for change in changes_of(judged) if change.figure == PEAK]
    return peaks[0] if peaks else "-"


def history_chart(series: Series, figure: str, axis: Axis, one: RecordingSummary | None) -> Chart | None:
    """One figure over the dates of its runs, with its recorded base, its limit today, and where it changed."""
    values = series.figures[figure]
    known = [value for value in values if value is not None]
    if not known:
        return None
    accepted = [index for index, run in enumerate(series.runs) if run.accepted and values[index] is not None]
    at = accepted[-1] if accepted else next(index for index, value in enumerate(values) if value is not None)
    base, number = values[at], series.runs[at].number
    rules = [] if base is None else [Rule("base", base, f"base {figure_text(figure, base)} (run {number})")]
    limited = one.limited if one is not None and figure == PEAK else None
    limit = None if limited is None else _limit(limited)
    rules += [] if limit is None else [limit]
    scale = Scale(known, rules)
    points = list(zip(axis.places, values, strict=True))
    steps = series.steps.get(figure, ())
    levels, origin = scale.levels()
    unit = " a sample" if figure == GROWTH else ""
    title = f"{figure}{unit}, {_span(series)}"
    return Chart(
        title=title,
        label="; ".join(
            [
                f"{title}: {series.newest[figure]} at last",
                *(step.text for step in steps),
                *(rule.text for rule in rules),
            ]
        ),
        path=stairs(points, scale),
        dots=spots(points, scale) if len(points) <= _MOST_DOTS else "",
        levels=levels,
        origin=origin,
        ticks=axis.ticks,
        rules=scale.placed(rules),
        events=[Tick(axis.places[step.index], f"{step.arrow} run {step.run.number}") for step in steps],
        gaps=[place for place, value in points if value is None],
        values=packed(values),
    )


def _span(series: Series) -> str:
    count = len(series.runs)
    first, last = series.runs[0].date[:10], series.runs[-1].date[:10]
    dates = "" if not first or not last else f", {first}" if first == last else f", {first} to {last}"
    return f"{count} run{'s' * (count != 1)}{dates}"


def icicles(one: RecordingSummary | MarkedSummary, judged: Judged | None) -> list[Icicle]:
    """The peak in pieces; where it differs from its base's, that first, both on one scale."""
    difference = None if judged is None else judged.difference
    if difference is not None and judged is not None and judged.base is not None:
        most_bytes = max(difference.base.peak_bytes, difference.head.peak_bytes)
        return [
            icicle(difference.base, f"base ({judged.base.run}), {_of_what(difference.base)}", most_bytes),
            icicle(one.breakdown or difference.head, f"this run, {_of_what(difference.head)}", most_bytes),
        ]
    return [] if one.breakdown is None else [icicle(one.breakdown, _of_what(one.breakdown))]


def _of_what(one: Breakdown) -> str:
    return "above the start of the test" if one.sample is None else f"sample {one.sample}"


def lines_of(one: Breakdown) -> list[dict[str, object]]:
    """Lines of code that a peak by line alone is made of, most bytes first."""
    return [
        {
            "line": piece.line or (f"{piece.smaller:,} more" if piece.smaller else piece.category),
            "op": piece.op,
            "dtype": piece.dtype,
            "shape": piece.shape,
            "count": piece.count,
            "bytes": piece.n_bytes,
        }
        for piece in folded(one.whole, _MOST_LINES)
    ]


def stack(one: RecordingSummary, judged: Judged | None) -> Stack | None:
    """The sample of the peak over time, with the outline of its base; None where it was not traced."""
    if one.timeline is None:
        return None
    base = None if judged is None else judged.base
    if base is None or base.entry.breakdown is None:
        return stacked(one.timeline)
    outline = base.entry.outline
    return stacked(one.timeline, outline, base.run, "" if outline else f"no outline of the base ({base.run}) is kept")


def kept_icicles(one: RecordingSummary) -> list[Icicle]:
    """Growth and garbage in pieces, as far as they were traced."""
    growth, garbage = one.growth_kept, one.garbage_kept
    drawn = []
    if growth is not None and growth.pieces:
        title = f"growth of {growth.runs} runs with tracing, {growth.rate_text} a sample"
        drawn.append(icicle(growth, title, name="growth"))
    if garbage is not None:
        title = f"garbage of sample {garbage.sample}, which only the collector frees"
        drawn.append(icicle(garbage, title, name="garbage"))
    return drawn


def differing(judged: Judged | None) -> Sequence[Moved]:
    """Every piece that the peak has more or less than its base's, what moved most first."""
    difference = None if judged is None else judged.difference
    return () if difference is None else [one for one in difference.moved if one.word != "same"]


def shares(figures: Sequence[int]) -> list[float]:
    """Each figure in percent of the largest, for bars."""
    most = max(map(abs, figures), default=0) or 1
    return [round(100 * max(0, figure) / most, 1) for figure in figures]
