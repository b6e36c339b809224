"""How far a plateau climbed: the figure, where it is counted from, and the words on every surface."""

from __future__ import annotations

import itertools
from functools import lru_cache

import numpy as np
import pytest
import torch

import vram
from vram.summary import RunSummary
from vram.summary.reader import run_from_json
from vram.verdict.summarize import summarize

KiB = 2**10


def replayed(entries: int, samples: int = 20, **declared: str) -> vram.Recording:
    """A cache of tensors of 8 KiB, a new key in every call, over 64 KiB that others hold."""
    calls = itertools.count()

    @lru_cache(maxsize=entries)
    def made(call: int) -> torch.Tensor:
        return torch.zeros(2048)

    held = torch.zeros(16 * 1024)
    return vram.replay(lambda _: made(next(calls)).sum() + held[0], range(samples), name="fills", **declared)  # type: ignore[arg-type]


def test_a_climb_is_counted_from_the_reading_before_the_first_sample() -> None:
    """Or, without one, from each sample's own reading in the first lap; late, from the first lap after warm-up."""
    runs = np.minimum(np.arange(100), 50).reshape(5, 20) * 8
    with_before = vram.judge_growth(runs + 80, before_bytes=72)
    assert (with_before.climb_bytes, with_before.late_climb_bytes) == (50 * 8 + 8, (50 - 39) * 8)
    assert vram.judge_growth(runs).climb_bytes == (50 - 19) * 8
    assert vram.judge_growth(runs[::-1]).climb_bytes < 0


def test_a_plateau_says_how_far_it_climbed() -> None:
    """128 entries of 8 KiB: 1 MiB is kept, at 0 B a sample; the climb is in the growth's own text."""
    recording = replayed(128)
    verdict = vram.verdicts(recording)["requested"]
    assert (verdict.status, verdict.climb_bytes) == ("plateau", 1024 * KiB)
    assert verdict.late_climb_bytes == (128 - 40) * 8 * KiB
    one = summarize(recording)
    assert one.climb_bytes == one.channels["requested"].climb_bytes == 1024 * KiB
    assert one.growth_text == "0 B; 1.00 MiB above the start"
    share = f"{100 * 1024 * KiB / recording.before['requested']:.0f} %"
    assert RunSummary(recordings=[one]).remarks == [
        f"fills: a plateau, and 1.00 MiB above the start, {share} of what was alive before; 704.00 KiB of it came "
        "after warm-up"
    ]


def test_a_small_climb_is_a_figure_and_no_remark() -> None:
    """A tenth of what was alive before, or what a declared cache may hold, is not remarked on."""
    for recording in (replayed(0), replayed(128, cache_budget="2 MiB")):
        assert RunSummary(recordings=[summarize(recording)]).remarks == []


def test_a_climb_over_the_declared_cache_is_told_as_such() -> None:
    """It still passes: a plateau has stopped rising."""
    recording = replayed(128, cache_budget="256 KiB")
    vram.assert_stable(recording)
    (remark,) = RunSummary(recordings=[summarize(recording)]).remarks
    assert "1.00 MiB above the start, more than the 256.00 KiB declared" in remark


def test_what_is_not_on_a_plateau_has_no_climb_in_words() -> None:
    """A leak has a rate, and what is stable has none."""
    kept: list[torch.Tensor] = []
    for step in (lambda _: kept.append(torch.zeros(64)), lambda _: torch.zeros(64)):
        one = summarize(vram.replay(step, range(20), name="other"))
        assert one.climb_bytes is None
        assert "above the start" not in one.growth_text


@pytest.mark.parametrize("figure", [None, 12])
def test_reports_with_and_without_the_figure_are_read(figure: int | None) -> None:
    """One of an earlier version has none; a wrong type is named."""
    report = RunSummary(environment={}, recordings=[summarize(replayed(64))]).to_json()
    channel = report["modes"][0]["channels"]["requested"]
    channel["climb_bytes"] = figure
    text = run_from_json(report).recordings[0].growth_text
    assert text == ("0 B" if figure is None else "0 B; 12 B above the start")
    channel["climb_bytes"] = "12"
    with pytest.raises(ValueError, match="climb_bytes"):
        run_from_json(report)
