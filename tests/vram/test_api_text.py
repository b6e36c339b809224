"""The whole text of a failing check; and which readings and tolerances it goes by. Figures are worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vram
from tests.vram.test_api import flat, leak, recorded
from vram.api import _forecast_text
from vram.budgets.file import Budget, accept, read_budget

MiB = 2**20

GREW = """\
mode: live memory (requested) grows by 4,096 B a sample
  it rose in 8 of 8 laps and never came back down
  10 laps of 20 samples: 10.00 MiB before the first, 10.78 MiB after the last
  since sample 0 of lap 0
  1 GiB more after 262,144 samples
  requested_peak: grows, 4,096 B a sample"""


def told(recording: vram.Recording) -> str:
    with pytest.raises((vram.MemoryGrowth, vram.Undecided)) as failure:
        vram.assert_stable(recording)
    return str(failure.value)


def on_card(card_bytes: int, **by_run: Any) -> vram.Recording:
    recording = recorded(requested=leak, **by_run)
    return replace(recording, environment={"device_bytes": card_bytes})


def test_growth_is_told_whole() -> None:
    """Rate, reason, from where to where, since when, how long a GiB lasts, and the other exact channels."""
    assert told(recorded(requested=leak, requested_peak=leak)) == GREW


def test_undecided_is_told_whole() -> None:
    """The last lap rose once: a rate, a reason, and no forecast."""
    assert told(recorded(requested=lambda r: (r >= 180) * 4096)).splitlines() == [
        "mode: live memory (requested) undecided whether it stops growing; so far 102.4 B (-1,593.5 to 1,798.3) "
        "a sample",
        "  it rose once, but: 1 of 5 rises needed; the rises span fewer than 5 laps",
        "  10 laps of 20 samples: 0 B before the first, 4.00 KiB after the last",
        "  since sample 0 of lap 9",
    ]


@pytest.mark.parametrize(
    ("recording", "line"),
    [
        # 10 MiB and 199 x 4,096 B are in use of 16 MiB
        (on_card(16 * MiB), "  a card of 16.00 MiB is full after 1,337 samples"),
        # what is reserved is in use: 12 MiB, and one page more in the last run
        (on_card(16 * MiB, reserved=lambda r: 12 * MiB + (r == 199) * 4096), "is full after 1,023 samples"),
        (on_card(16 * MiB, reserved=lambda r: 12 * MiB + (r == 198) * 4096), "is full after 1,024 samples"),
        (on_card(16 * MiB, reserved=lambda r: 12 * MiB + (r == 179) * 4096), "is full after 1,024 samples"),
        (on_card(MiB), "  a card of 1.00 MiB is full after 0 samples"),
    ],
)
def test_the_forecast_counts_from_the_last_reading(recording: vram.Recording, line: str) -> None:
    """For a card whose size is known: what is free after the last sample, by the rate."""
    assert line in told(recording)


def test_a_rate_that_is_not_exact_gives_a_span() -> None:
    """From the interval's ends; where it may not grow at all, the latest is never."""
    recording = recorded(requested=lambda r: leak(r) + r % 3)
    verdict = replace(vram.verdicts(recording)["requested"], bytes_per_sample=4.0, low_bytes=2.0, high_bytes=8.0)
    (line,) = _forecast_text(recording, "requested", verdict)
    assert line == "  1 GiB more after 268,435,456 samples (95 %: 134,217,728 to 536,870,912)"
    (line,) = _forecast_text(recording, "requested", replace(verdict, low_bytes=-1.0))
    assert line == "  1 GiB more after 268,435,456 samples (95 %: 134,217,728 to never)"
    assert _forecast_text(recording, "requested", replace(verdict, status="undecided")) == []


def test_the_interval_is_told_where_there_is_one() -> None:
    """An exact rate stands by itself."""
    assert "grows by 4,096 B a sample" in told(recorded(requested=leak))
    first = told(recorded(requested=lambda r: leak(r) + r % 3 * 512)).splitlines()[0]
    verdict = vram.verdicts(recorded(requested=lambda r: leak(r) + r % 3 * 512))["requested"]
    assert f"B ({verdict.low_bytes:,.1f} to {verdict.high_bytes:,.1f}) a sample" in first
    assert verdict.low_bytes < 4096 < verdict.high_bytes


def test_a_noisy_channel_is_reported_where_it_grows() -> None:
    """A quiet one has other figures in every run, and says nothing."""
    noisy = told(recorded(requested=leak, allocated=flat, host=lambda r: r * MiB, reserved=flat))
    assert noisy.splitlines()[-1] == "  host: grows, 1,048,576 B a sample, noisy: reported, never fails a test"
    assert "allocated" not in noisy


def test_the_driver_s_own_growth_needs_no_excuse() -> None:
    """Where the driver counts this process alone it decides too."""
    recording = recorded(requested=leak, driver=lambda r: r * MiB)
    own = replace(recording, environment={"driver_bytes": "of this process"})
    assert told(own).splitlines()[-1] == "  driver: grows, 1,048,576 B a sample"


@pytest.mark.parametrize(("live", "said"), [(flat, True), (lambda r: flat(r) + (r >= 20) * MiB, True), (leak, False)])
def test_fragmentation_is_reserved_growing_alone(live: Any, said: bool) -> None:
    """Beside live memory that grows too, it is what live memory needs."""
    recording = recorded(requested=live, requested_peak=leak, reserved=lambda r: r * MiB)
    assert ("  reserved grows while live memory does not: fragmentation" in told(recording).splitlines()) is said
    assert "fragmentation" not in told(recorded(requested=flat, requested_peak=leak, reserved=flat))


def test_another_device_s_channel_is_told_by_its_name() -> None:
    """ "memory" is what it is."""
    recording = recorded(exact="requested other", requested=flat, other=leak)
    assert told(recording).startswith("mode: memory (other) grows by 4,096 B a sample\n")


def test_verdicts_come_most_telling_channel_first() -> None:
    """However the meters were asked; what nobody knows comes last."""
    names = ["other", "host", "driver", "reserved", "allocated", "requested_peak", "requested"]
    assert list(vram.verdicts(recorded(**dict.fromkeys(names, flat)))) == [*reversed(names[1:]), "other"]


def test_a_verdict_goes_by_the_recording_s_own_laps_and_tolerances() -> None:
    """Ten base laps make a first look of it; two of warm-up leave a first step out; a page is below 2 MiB."""
    grown = recorded(requested=leak, reserved=leak)
    assert vram.verdicts(grown)["requested"].status == "grows"
    assert vram.verdicts(replace(grown, base_laps=10))["requested"].status == "undecided"
    stepped = recorded(requested=lambda r: (r >= 40) * MiB)
    assert vram.verdicts(stepped)["requested"].reason.startswith("it rose once, then stayed level")
    assert vram.verdicts(replace(stepped, warmup_laps=2))["requested"].reason == "it rose during warm-up and not since"
    assert vram.verdicts(grown)["reserved"].status == "stable"
    tiny = recorded(requested=lambda r: r // 20)  # a byte a lap, and no tolerance unless one is stated
    assert vram.verdicts(tiny)["requested"].status == "grows"


def test_without_an_exact_channel_all_reasons_are_told() -> None:
    """One by one; or that there is no meter."""
    absent = {"requested": "no counter", "requested_peak": "no peak"}
    with pytest.raises(vram.Inconclusive, match=r"measured \(requested: no counter; requested_peak: no peak\)"):
        vram.assert_stable(recorded(reserved=flat, absent=absent))
    with pytest.raises(vram.Inconclusive, match=r"no exact channel was measured \(no meter reads one\)"):
        vram.assert_stable(recorded(reserved=flat))


def test_a_noisy_peak_has_its_tolerance() -> None:
    """Exactly the granule over the limit passes."""
    recording = recorded(reserved=lambda r: 0 * r + 12 * MiB)
    vram.assert_peak(recording, "10 MiB", "reserved")
    with pytest.raises(vram.PeakExceeded, match="is 1 B over"):
        vram.assert_peak(recording, 10 * MiB - 1, "reserved")


def test_a_peak_is_held_to_a_budget(tmp_path: Path) -> None:
    """Its recorded bytes, and none without."""
    recording = recorded(requested_peak=flat)
    vram.assert_peak(recording, Budget(tmp_path / "b.toml", {"mode": "a"}, 10 * MiB))
    with pytest.raises(vram.PeakExceeded, match="is 1 B over"):
        vram.assert_peak(recording, Budget(tmp_path / "b.toml", {"mode": "a"}, 10 * MiB - 1))
    with pytest.raises(vram.Inconclusive, match=r"new: no budget a, b in b\.toml; record it with --vram-accept"):
        vram.assert_peak(recording, Budget(tmp_path / "b.toml", {"mode": "a", "card": "b"}, None))
    with pytest.raises(vram.Inconclusive, match="host was not measured: no meter reads it"):
        vram.assert_peak(recording, 1, "host")


def test_accepting_returns_the_budget_that_is_now_recorded(tmp_path: Path) -> None:
    """In folders that did not exist, and a file that had other things in it; sorted by key, for short diffs."""
    path = tmp_path / "deep" / "folder" / "b.toml"
    assert accept(Budget(path, {"mode": "b"}, None), 7) == Budget(path, {"mode": "b"}, 7)
    accept(Budget(path, {"mode": "a"}, None), 8)
    assert path.read_text().index('"a"') < path.read_text().index('"b"')
    other = tmp_path / "other.toml"
    other.write_text("# nothing yet\n")
    assert read_budget(other, mode="a").limit_bytes is None
