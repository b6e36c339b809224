"""What a report says, checked as it is read, and how it meets the saved runs."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.vram.history.made import entry, write_runs
from tests.vram.page.made import CPU, channel, leaky, mode, report, with_tokens, written
from vram.history import store
from vram.page.data import mode_data, overlaid
from vram.page.gathering import Mode, NotAReport, Page, read_report, saved_runs
from vram.page.thinning import thinned


def read(tmp_path: Path, *modes: dict[str, Any]) -> list[Mode]:
    return list(read_report(written(tmp_path / "r.json", report(*modes))).modes)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"schema": NaN}', "not JSON: NaN"),
        ("[]", "no schema"),
        ("{}", "no schema"),
        ('{"schema": true}', "no schema"),
        ('{"schema": "1"}', "no schema"),
        ('{"schema": 2}', "of a later version: schema 2, this one reads 1"),
        ('{"schema": 1}', "not a report of --vram-report: no 'environment'"),
        ('{"schema": 1, "environment": {}, "modes": [1]}', "not a report"),
        ('{"schema": 1, "environment": {}, "modes": {}}', "not a report"),
        ('{"schema": 1, "environment": [], "modes": []}', "not a report"),
        ('{"benchmarks": [], "version": "5"}', "no schema"),
    ],
)
def test_what_is_no_report_is_named_in_one_line(tmp_path: Path, told: str, why: str) -> None:
    """Corrupt, foreign and future files are a ValueError with the file and the reason."""
    path = tmp_path / "r.json"
    path.write_text(told)
    with pytest.raises(NotAReport, match=r"r\.json") as error:
        read_report(path)
    assert why in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("broken", [b"\xff\xfe{}", None], ids=["not UTF-8", "not there"])
def test_what_can_not_be_read_is_named(tmp_path: Path, broken: bytes | None) -> None:
    """So is a file that is no text, and one that is not there."""
    path = tmp_path / "r.json"
    if broken is not None:
        path.write_bytes(broken)
    with pytest.raises(NotAReport, match=r"r\.json can't be read"):
        read_report(path)


@pytest.mark.parametrize("field", sorted(mode()))
def test_no_wrong_value_of_a_mode_passes(tmp_path: Path, field: str) -> None:
    """Whatever stands in one field instead, the file is refused or read, and never fails in another way."""
    for wrong in ([], {}, "text", 1.5, True, -1, None, [[]], {"a": 1}, 10**30, [1]):
        path = written(tmp_path / "r.json", report(mode(**{field: wrong})))
        with suppress(NotAReport):
            read_report(path)


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({}, "stable"),
        ({"verdict": "plateau"}, "plateau"),
        ({"verdict": "undecided"}, "undecided"),
        ({"verdict": None}, "inconclusive"),
        ({"verdict": None, "laps": 1}, "peaks alone"),
        ({"verdict": "out of memory"}, "out of memory"),
        ({"budget_bytes": 4096}, "stable"),
        ({"budget_bytes": 4095}, "over budget"),
        ({"budget_bytes": 4000, "besides_bytes": 96}, "stable"),
        ({"budget_bytes": 4000, "besides_bytes": 95}, "over budget"),
        ({"ratios": [{"ratio": 1.0, "at_most": 1.0, "text": "as much"}]}, "stable"),
        ({"ratios": [{"ratio": 1.1, "at_most": 1.0, "text": "more"}]}, "too much"),
    ],
)
def test_the_worst_is_what_a_mode_is_called(tmp_path: Path, more: dict[str, Any], status: str) -> None:
    """At its limit exactly it is fine; one byte more it is not. What others held is no part of its peak."""
    (found,) = read(tmp_path, mode(**more))
    assert found.status == status


def test_growth_and_a_budget_are_both_said(tmp_path: Path) -> None:
    """The worse of two statuses hides none of them."""
    (found,) = read(tmp_path, leaky(budget_bytes=1))
    assert found.statuses == ["grows", "over budget"]


def test_modes_meet_their_saved_runs_by_key(tmp_path: Path) -> None:
    """A mode has the history of exactly its key; another torch is told, never mixed in."""
    uri = write_runs(tmp_path, [entry(1000, samples=4)], [entry(1001, samples=4, environment={**CPU, "torch": "3"})])
    saved = saved_runs(store.read(uri))
    told = read_report(written(tmp_path / "r.json", report(mode(), mode("other"))))
    page = Page(told, saved)
    (found,) = page.saved_of(told.modes[0])
    assert found.series["peak"] == [1000]
    assert page.saved_of(told.modes[1]) == []
    assert page.nearest(told.modes[1]) == "no saved run measured this mode"
    other = Page(told, [one for one in saved if one is not found])
    assert "torch 3 -> 2.13.0+cpu" in other.nearest(told.modes[0])


def test_a_mode_without_a_name_is_known_by_its_test(tmp_path: Path) -> None:
    """Its runs are saved under the test as well, which the report does not say."""
    (found,) = read(tmp_path, mode("step", named=False))
    unnamed = (("test", "tests/t.py::test_it"), *found.key)
    page = Page(None, [])
    saved = saved_runs(store.read(str(tmp_path / "none")))
    assert saved == []
    assert page.saved_of(found) == []
    from vram.page.gathering import _same

    assert _same(found, unnamed)
    assert not _same(found, found.key)


def test_a_step_of_several_figures_is_told_once(tmp_path: Path) -> None:
    """`peak` and what follows it exactly are one step, named together, with the run it began with."""
    uri = write_runs(tmp_path, *([entry(peak)] for peak in (1000, 1000, 1000, 2000, 2000)))
    (saved,) = saved_runs(store.read(uri))
    ((names, step, run),) = saved.told_steps()
    assert ("peak" in names, step.before, step.after, run.number) == (True, 1000, 2000, "0004")
    assert saved.newest_steps == []


def test_laps_that_read_the_same_are_one_line() -> None:
    """Equal neighbours are drawn once and named; no reading is lost or invented."""
    lines = overlaid([[1, 2], [3, 4], [3, 4], [], [3, 4]], 100)
    assert [(line["name"], line["y"]) for line in lines] == [
        ("lap 0", [1, 2]),
        ("laps 1 to 2, equal", [3, 4]),
        ("lap 4", [3, 4]),
    ]


def test_figures_reach_the_charts_to_the_byte(tmp_path: Path) -> None:
    """By sample and by token; the limit that is drawn is absolute, as the readings are."""
    found = read(tmp_path, with_tokens(budget_bytes=4000, besides_bytes=96))[0]
    data = mode_data(found, 1000)
    peak = next(one for one in data["channels"] if one["name"] == "requested_peak")
    assert (peak["limit"], peak["lines"][0]["y"]) == (4096, [2048, 3072, 4096, 2048])
    assert data["marks"][0]["channels"][0]["lines"][0]["y"] == [1000, 1008, 1016, 1024, 1032, 1040]


def test_thinning_keeps_ends_extremes_and_steps() -> None:
    """Of a long series stay the first, the last, the highest, the lowest, what was asked for, and few others."""
    series: list[float | None] = [float(at % 7) for at in range(10_000)]
    series[1234], series[7777], series[5000] = 99.0, -99.0, None
    kept = thinned(series, 100, always=[4321, 5000])
    assert {0, 9999, 1234, 7777, 4321} <= set(kept)
    assert 5000 not in kept
    assert kept == sorted(set(kept))
    assert len(kept) <= 103
    assert thinned(series[:50], 100) == list(range(50))


def test_readings_of_unequal_laps_are_refused(tmp_path: Path) -> None:
    """A lap that has fewer samples than another is no recording."""
    wrong = mode(channels={"requested": channel([[1, 2], [1]])})
    with pytest.raises(NotAReport, match="laps, samples"):
        read_report(written(tmp_path / "r.json", report(wrong)))
    assert json.loads((tmp_path / "r.json").read_text())["schema"] == 1
