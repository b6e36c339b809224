"""Charts as geometry: where lines, levels and labels are, from figures worked out by hand."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from tests.vram.history.made import entry
from vram.history.runs import History, Run
from vram.report.charts import Rule, Scale, packed, spark, staircase, thinned
from vram.report.dates import axis
from vram.report.figures import history_chart, recording_charts
from vram.report.repository import commit_address, repository, web_address
from vram.report.series import all_series
from vram.summary import ChannelSummary, Check, RecordingSummary

KIB, GIB = 2**10, 2**30


def corners(path: str) -> list[tuple[float, float]]:
    """The points that an SVG path of M, H and V goes through."""
    points: list[tuple[float, float]] = []
    for command, first, second in re.findall(r"([MHV])([\d.-]+)(?: ([\d.-]+))?", path):
        x, y = points[-1] if points else (0.0, 0.0)
        points.append((float(first), float(second or y)) if command in "MH" else (x, float(first)))
    return points


def test_growth_is_one_staircase_over_all_runs() -> None:
    """Three laps of two samples that each keep 4 KiB: six steps up from left to right, bounds after each second run."""
    chart = staircase("requested", [[0, 4 * KIB], [8 * KIB, 12 * KIB], [16 * KIB, 20 * KIB]])
    assert chart is not None
    points = corners(chart.path)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    heights = list(dict.fromkeys(y for _, y in points))
    assert len(heights) == 6
    assert heights == sorted(heights, reverse=True)
    rises = {round(above - below, 1) for below, above in zip(heights[1:], heights, strict=False)}
    assert len(rises) == 1
    assert (points[0][0], points[-1][0]) == (0, 100)
    assert chart.bounds == [33.33, 66.67]
    assert [tick.text for tick in chart.ticks] == ["lap 0", "lap 1", "lap 2"]
    assert (chart.values, chart.laps) == ("0 4096 8192 12288 16384 20480", "2x3")
    assert chart.label == "requested, 6 samples in 3 laps: 0 B at first, 20.00 KiB at most, 20.00 KiB at last"


def test_a_limit_is_a_line_where_it_belongs() -> None:
    """Halfway between two readings it is drawn halfway; one that is far off is named with an arrow."""
    limit = Rule("limit", 15 * KIB, "budget 15.00 KiB")
    chart = staircase("peak", [[10 * KIB, 20 * KIB]], [limit, Rule("limit", GIB, "limit 1.00 GiB")])
    assert chart is not None
    low, high = (y for _, y in (corners(chart.path)[0], corners(chart.path)[-1]))
    near, far = chart.rules
    assert near.at == pytest.approx((low + high) / 2, abs=0.02)
    assert near.text == "budget 15.00 KiB"
    assert (far.at, far.text) == (None, "limit 1.00 GiB \u2191")
    assert chart.label.endswith("; budget 15.00 KiB; limit 1.00 GiB")


@pytest.mark.parametrize(
    ("low", "high", "texts", "origin"),
    [
        (0, 65536, ["0 KiB", "16 KiB", "32 KiB", "48 KiB", "64 KiB"], ""),
        (14 * GIB, 16 * GIB, ["14 GiB", "14.5 GiB", "15 GiB", "15.5 GiB", "16 GiB"], ""),
        (14 * GIB, 14 * GIB + 4 * KIB, ["+0 KiB", "+1 KiB", "+2 KiB", "+3 KiB", "+4 KiB"], "14.00 GiB"),
        (2**62, 2**62 + 1, ["+0 B", "+1 B"], "4,194,304.00 TiB"),
        (0, 0, ["0 B", "1 B", "2 B"], ""),
        (-5, 3, ["-4 B", "-2 B", "0 B", "2 B", "4 B"], ""),
        (512.3, 512.6, ["512 B"], ""),
    ],
)
def test_levels_never_read_alike(low: float, high: float, texts: list[str], origin: str) -> None:
    """Round figures in one unit; where two digits can't tell them apart, how far they are above the lowest."""
    levels, above = Scale([low, high]).levels()
    assert [level.text for level in levels] == texts
    assert above.startswith(origin) if origin else above == ""
    assert all(-0.01 <= level.at <= 100 for level in levels)


def test_a_limit_below_the_readings_is_drawn_there() -> None:
    """A budget that is exceeded by twice what the readings move is a line below them, and they are above."""
    scale = Scale([130 * KIB, 140 * KIB], [Rule("limit", 110 * KIB, "budget")])
    (limit,) = scale.placed([Rule("limit", 110 * KIB, "budget")])
    assert limit.at is not None
    assert scale.at(130 * KIB) < limit.at <= 100


def test_the_limit_of_a_recording_stands_above_what_others_keep() -> None:
    """Readings are absolute: 10 KiB allowed beside 100 KiB of others is a line at 110 KiB, which a reading touches."""
    check = Check("limit", "passed", "within", limit_bytes=10 * KIB, besides_bytes=100 * KIB)
    peaks = ChannelSummary(True, [[100 * KIB, 110 * KIB]], 0)
    (chart,) = recording_charts(RecordingSummary("a", channels={"requested_peak": peaks}, checks=(check,)), None)
    (limit,) = chart.rules
    assert limit.at == min(y for _, y in corners(chart.path))
    assert limit.text == "limit 10.00 KiB, beside 100.00 KiB of others"


def test_a_run_without_a_figure_is_marked() -> None:
    """Where the second of three runs has no peak, the line breaks there and a cross says that something was."""
    made = [entry(), replace(entry(), channels={}), entry()]
    runs = [Run(f"m/{day:04}_x.json", f"2026-01-0{day}", "", False, [one]) for day, one in enumerate(made, start=1)]
    (series,) = all_series(History(runs))
    drawn = axis([run.time for run in runs], [run.number for run in runs])
    chart = history_chart(series, "peak", drawn, None)
    assert chart is not None
    assert list(chart.gaps) == [drawn.places[1]] == [48.5]
    assert chart.path.count("M") == 2


def test_many_readings_keep_their_extremes() -> None:
    """100,000 readings become at most two for each pixel, and the one that is high is among them at its place."""
    points = [(index / 1000, 5.0) for index in range(100_000)]
    points[41_234] = (41.234, 99.0)
    kept = thinned(points)
    assert len(kept) <= 1000
    assert (41.234, 99.0) in kept
    assert list(kept) == sorted(kept)


def test_what_was_not_measured_is_a_gap() -> None:
    """A run without a figure breaks the line: no place is made up."""
    assert spark([1.0, None, 1.0]).path.count("M") == 2
    assert spark([None, None]).path == ""
    assert staircase("x", [[], []]) is None
    assert packed([4096, 4096, None, 1]) == "4096x2 - 1"


def test_noise_looks_like_noise() -> None:
    """A move of a thousandth hardly bends the line, unless it is a step for good, which fills its height."""

    def height(steps: list[int]) -> float:
        ys = [y for _, y in corners(spark([1000.0, 1000.0, 1001.0, 1001.0], steps).path)]
        return max(ys) - min(ys)

    assert height([]) < 5
    assert height([2]) > 80


@pytest.mark.parametrize(
    ("hours", "texts"),
    [
        (range(0, 24 * 12, 24), ["3 Jan", "5 Jan", "7 Jan", "9 Jan", "11 Jan"]),
        (range(0, 15, 2), ["12:00", "15:00", "18:00", "21:00", "2 Jan"]),
        (range(0, 24 * 400, 24), ["Apr 2026", "Jul 2026", "Oct 2026", "Jan 2027"]),
    ],
)
def test_dates_are_round_and_where_they_belong(hours: range, texts: list[str]) -> None:
    """From 2026-01-01 10:30 on, days, hours and months; the places of runs follow the clock, not their count."""
    times = [(datetime(2026, 1, 1, 10, 30) + timedelta(hours=hour)).isoformat() for hour in hours]
    made = axis(times, [str(index) for index in range(len(times))])
    assert made.dated
    assert [tick.text for tick in made.ticks][-len(texts) :] == texts
    assert (made.places[0], made.places[-1]) == (0, 97)
    late = axis(
        [*times, (datetime.fromisoformat(times[-1]) + timedelta(days=900)).isoformat()], ["1"] * (len(times) + 1)
    )
    assert late.places[-2] < 50


@pytest.mark.parametrize(
    "times", [["", "2026-01-01"], ["2026-01-02", "2026-01-01"], ["2026-01-01"] * 2, ["nonsense"] * 2]
)
def test_runs_without_dates_stand_in_their_order(times: list[str]) -> None:
    """No date, a wrong clock, or one moment: evenly spaced, under their numbers."""
    made = axis(times, ["0007", "0008"])
    assert not made.dated
    assert (list(made.places), [tick.text for tick in made.ticks]) == ([0, 97], ["0007", "0008"])


@pytest.mark.parametrize(
    ("origin", "address"),
    [
        ("git@github.com:owner/name.git", "https://github.com/owner/name"),
        ("ssh://git@host.org:2222/owner/name.git", "https://host.org/owner/name"),
        ("https://user:secret@host.org:8443/group/name/", "https://host.org:8443/group/name"),
        ("git@gitlab:group/name.git", "https://gitlab/group/name"),
        ("git://host.org/name.git", "https://host.org/name"),
    ],
)
def test_commits_are_linked_without_a_secret(origin: str, address: str) -> None:
    """The address that git clones from becomes the repository's page; a password in it goes nowhere."""
    assert web_address(origin) == address
    assert commit_address(address, "a" * 40) == f"{address}/commit/{'a' * 40}"


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "/srv/git/name",
        "javascript:alert(1)",
        "javascript:x",
        "C:\\git\\name",
        "C:/git/name",
        "file:///srv/x",
        "http://",
    ],
)
def test_what_is_no_address_is_no_link(origin: str) -> None:
    """A folder of this machine, or a script: refused, with the rule; a commit that is none is not linked either."""
    with pytest.raises(ValueError, match="a repository must be an http address"):
        web_address(origin)
    assert commit_address("", "a" * 40) == commit_address("https://x.org/y", "<b>") == ""


def test_the_ci_job_names_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """GitHub's and GitLab's variables."""
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
    monkeypatch.setenv("GITHUB_REPOSITORY", "owner/name")
    assert repository() == "https://github.com/owner/name"
    monkeypatch.delenv("GITHUB_REPOSITORY")
    monkeypatch.setenv("CI_PROJECT_URL", "https://gitlab.org/group/name")
    assert repository() == "https://gitlab.org/group/name"
