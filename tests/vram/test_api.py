"""From a recording to an outcome, a budget file and a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vram
from vram.api import check_peak
from vram.budgets.file import accept, read_budget
from vram.recording import Recording
from vram.report.json_file import write_report
from vram.report.terminal import table
from vram.summary import Check, RunSummary
from vram.verdict.ratio import compare
from vram.verdict.summarize import summarize

MiB = 2**20


def recorded(exact: str = "requested requested_peak", absent: dict[str, str] | None = None, **by_run: Any) -> Recording:
    """A recording of 20 samples, from functions of the run number."""
    laps = 10
    channels = {
        name: np.asarray(series(np.arange(laps * 20)), dtype=np.int64).reshape(laps, 20)
        for name, series in by_run.items()
    }
    return Recording(
        name="mode",
        channels=channels,
        before={name: int(figures[0, 0]) for name, figures in channels.items()},
        exact=frozenset(exact.split()) & channels.keys(),
        tolerance_bytes={"reserved": 2 * MiB},
        absent=absent or {},
        marks={},
        environment={"source": "hand-made"},
        seconds=np.ones((laps, 20)),
        warmup_laps=1,
    )


def flat(runs: Any) -> Any:
    return 0 * runs + 10 * MiB


def leak(runs: Any) -> Any:
    return runs * 4096 + 10 * MiB


@pytest.mark.parametrize(
    "ask", [vram.assert_stable, lambda it: vram.assert_peak(it, 1), lambda it: compare(it, it, at_most=1)]
)
def test_what_is_no_recording_is_refused(ask: Callable[[Any], object]) -> None:
    """The step in its place, mostly."""
    with pytest.raises(TypeError, match=r"a recording must be what `vram.replay` returned, got 'answer'"):
        ask("answer")


@pytest.mark.parametrize(
    "ask",
    [lambda it, channel: vram.assert_peak(it, 1, channel), lambda it, channel: compare(it, it, channel, at_most=1)],
)
def test_a_channel_that_nobody_knows_is_refused(ask: Callable[[Any, str], object]) -> None:
    """Misspelled, it would be a skip for ever; one that was not measured here is one."""
    recording = vram.replay(lambda _: None, [0])
    with pytest.raises(ValueError, match=r"channel must be one of requested, requested_peak, .*, got 'reqested_peak'"):
        ask(recording, "reqested_peak")
    with pytest.raises(vram.Inconclusive, match="a CPU has no caching allocator"):
        ask(recording, "reserved")


def test_stable_and_plateau_pass() -> None:
    """Quiet channels, and one that moved during warm-up only, are fine."""
    vram.assert_stable(recorded(requested=flat, requested_peak=lambda r: np.minimum(r, 5) * MiB))


def test_growth_of_any_exact_channel_fails() -> None:
    """Live flat and the peak growing is growth, named with its channel."""
    with pytest.raises(vram.MemoryGrowth, match=r"peak memory \(requested_peak\) grows by 4,096 B a sample"):
        vram.assert_stable(recorded(requested=flat, requested_peak=leak))


def test_a_noisy_channel_is_reported_and_fails_nothing() -> None:
    """Growth of reserved alone passes; where a test fails anyway it is told, and fragmentation called by its name."""
    vram.assert_stable(recorded(requested=flat, reserved=leak))
    with pytest.raises(vram.MemoryGrowth, match=r"reserved: grows, .* noisy: reported, never fails a test") as failure:
        vram.assert_stable(recorded(requested=flat, requested_peak=leak, reserved=lambda r: r * MiB))
    assert "fragmentation" in str(failure.value)


def test_undecided_on_an_exact_channel_fails_as_undecided() -> None:
    """It grew, and nobody can say that it stops: not a pass, and not called a leak."""
    with pytest.raises(vram.Undecided, match="undecided whether it stops"):
        vram.assert_stable(recorded(requested=lambda r: (r >= 180) * 4096))


def test_no_exact_channel_is_inconclusive_with_the_reason() -> None:
    """Nothing measured is never passed."""
    with pytest.raises(vram.Inconclusive, match="requested: no such counter"):
        vram.assert_stable(recorded(reserved=flat, absent={"requested": "no such counter"}))


def test_a_peak_exactly_at_its_limit_passes_and_one_byte_over_fails() -> None:
    """The edge is allowed; the message shows the excess, so that two sizes never print alike."""
    recording = recorded(requested=flat, requested_peak=lambda r: flat(r) + (r == 47))
    vram.assert_peak(recording, 10 * MiB + 1)
    with pytest.raises(vram.PeakExceeded, match=r"is 1 B over the allowed 10,485,760 B .* sample 7 of lap 2"):
        vram.assert_peak(recording, "10 MiB")


def test_what_others_hold_is_no_part_of_a_limit() -> None:
    """10 MiB of which others held 4: exactly 6 MiB pass, one byte less fails."""
    recording = recorded(requested=flat, requested_peak=flat)
    vram.assert_peak(recording, 6 * MiB, besides_bytes=4 * MiB)
    with pytest.raises(vram.PeakExceeded, match="is 1 B over"):
        vram.assert_peak(recording, 6 * MiB - 1, besides_bytes=4 * MiB)


def test_a_peak_nobody_measured_is_inconclusive() -> None:
    """An absent channel is not a peak of 0."""
    with pytest.raises(vram.Inconclusive, match="driver was not measured: no driver here"):
        vram.assert_peak(recorded(requested=flat, absent={"driver": "no driver here"}), "1 MiB", channel="driver")


def test_a_recording_is_frozen_short_and_says_what_it_lacks() -> None:
    """Its figures can't be written to; it prints as one line; a missing channel is a KeyError with the reason."""
    recording = recorded(requested=flat, requested_peak=flat, absent={"driver": "no driver here"})
    assert repr(recording) == "<Recording 'mode': 10 laps of 20 samples, requested, requested_peak>"
    with pytest.raises(ValueError, match="read-only"):
        recording.channels["requested"][0, 0] = 1
    with pytest.raises(KeyError, match="driver was not measured: no driver here"):
        recording.peak_bytes("driver")
    with pytest.raises(KeyError, match="other was not measured: no meter reads it"):
        recording.peak_bytes("other")


def test_judge_peak_counts_the_tolerance_in() -> None:
    """Exactly limit + tolerance passes."""
    assert vram.judge_peak(2049, 2048, 1) is None
    assert vram.judge_peak(2048, 2048) is None
    assert vram.judge_peak(2049, 2048) is not None
    assert str(vram.judge_peak(2050, 2048, 1)) == ("peak 2,050 B (2.00 KiB) is 1 B over the allowed 2,049 B (2.00 KiB)")


def test_budgets_are_read_by_their_whole_key(tmp_path: Path) -> None:
    """Another key, or part of one, is new; accepting writes one key and leaves the others alone."""
    path = tmp_path / "folder" / "tiny.toml"
    assert read_budget(path, mode="a").limit_bytes is None
    accept(read_budget(path, mode="a", dtype='f"16'), 100)
    accept(read_budget(path, mode="b"), 200)
    accept(read_budget(path, mode="b"), 150)
    assert read_budget(path, mode="a", dtype='f"16').limit_bytes == 100
    assert read_budget(path, mode="b").limit_bytes == 150
    assert read_budget(path, mode="a").limit_bytes is None
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny.toml"]


def test_a_new_budget_is_inconclusive_and_says_how_to_record_it(tmp_path: Path) -> None:
    """New is never passed."""
    budget = read_budget(tmp_path / "tiny.toml", mode="himap")
    with pytest.raises(vram.Inconclusive, match=r"new: no budget himap in tiny.toml; record it with --vram-accept"):
        vram.assert_peak(recorded(requested_peak=flat), budget)


@pytest.mark.parametrize("text", ["budget = [", "[[budget]]\nmode = 'a'\n", "[[budget]]\npeak_bytes = 'many'\n"])
def test_a_budget_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    """Not TOML, or a budget without its bytes, is a ValueError that names the file."""
    path = tmp_path / "tiny.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"tiny\.toml"):
        read_budget(path, mode="a")


def test_the_report_has_the_promised_fields(tmp_path: Path) -> None:
    """Schema 1: every figure of a mode, absent ones as null with a reason, channels with their readings."""
    summary = summarize(recorded(requested=flat, requested_peak=leak, absent={"driver": "none"}))
    write_report(tmp_path / "deep" / "memory.json", RunSummary({"torch": "2"}, [summary]))
    report = json.loads((tmp_path / "deep" / "memory.json").read_text())
    assert (report["schema"], report["environment"]) == (1, {"torch": "2"})
    (mode,) = report["modes"]
    assert (mode["mode"], mode["laps"], mode["samples"], mode["seconds"]) == ("mode", 10, 20, 200.0)
    assert (mode["verdict"], mode["verdict_channel"], mode["bytes_per_sample"]) == ("grows", "requested_peak", 4096.0)
    assert mode["peak_bytes"] == 10 * MiB + 199 * 4096
    assert mode["softmax_peak_bytes"] is None
    assert mode["absent"] == {"driver": "none"}
    assert mode["channels"]["requested"]["bytes"][9][19] == 10 * MiB


def test_the_table_shows_a_dash_for_what_was_not_measured_and_says_why() -> None:
    """One row a mode; an absent figure is no number, and its reason stands below. A budget is shown where one is."""
    summary = summarize(recorded(reserved=flat, absent={"requested": "no such counter"}))
    head, row = table([summary])
    assert head.split() == ["recording", "runs", "growth/sample", "peak", "outcome", "seconds"]
    assert row.split() == ["mode", "10", "x", "20", "-", "-", "inconclusive", "200.0"]
    limit = Check("budget", "passed", "within", figure_bytes=1024, limit_bytes=2048)
    head, budgeted, row = table([replace(summary, checks=(limit,)), summary])
    assert head.split() == ["recording", "runs", "growth/sample", "peak", "limit", "outcome", "seconds"]
    assert budgeted.split()[4:-1] == ["-", "-", "2.00", "KiB", "inconclusive"]
    assert row.split()[4:-1] == ["-", "-", "-", "inconclusive"]
    assert any("requested not measured: no such counter" in line for line in RunSummary({}, [summary]).absences)


def test_the_table_leaves_out_what_others_held_and_says_so() -> None:
    """A peak is shown as its limit means it; what was taken off is said."""
    recording = recorded(requested=flat, requested_peak=flat)
    check = check_peak(recording, "7 MiB", besides_bytes=4 * MiB)
    summary = replace(summarize(recording), checks=(check,))
    assert "6.00 MiB  7.00 MiB  stable" in table([summary])[1]
    assert "peaks leave out 4.00 MiB that others kept alive throughout" in RunSummary({}, [summary]).absences
