"""From what a session measured to entries, and from entries to a verdict on a test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.vram.history.made import CPU, entry, write_runs
from vram.errors import Inconclusive
from vram.history.entries import of_summary
from vram.history.gate import Gate, Gatherer, MemoryRegression, error_of
from vram.summary import ChannelSummary, RecordingSummary


def summary(mode: str = "himap", peak: int = 1000, **more: Any) -> RecordingSummary:
    """A recording of two laps, or one with other figures."""
    channel = ChannelSummary(True, [[peak - 1, peak], [peak, peak]], 0, verdict="stable", bytes_per_sample=0.0)
    figures: dict[str, Any] = {"laps": 2, "samples": 2, "verdict": "stable", "seconds": 1.0}
    return RecordingSummary(mode, **{**figures, "channels": {"requested_peak": channel}, **more})


def keys(gatherer: Gatherer, test: str) -> list[dict[str, str]]:
    return [dict(one.key) for one in gatherer.entries(test, CPU)]


def test_a_recording_belongs_to_the_test_that_made_it() -> None:
    """One made in a session fixture to the test that first asked for it; each once."""
    gatherer, summaries = Gatherer(), [summary()]
    gatherer.gather("a", summaries)
    gatherer.gather("b", summaries)
    summaries.append(summary("fps"))
    gatherer.gather("b", summaries)
    assert [key["mode"] for key in keys(gatherer, "a")] == ["himap"]
    assert [key["mode"] for key in keys(gatherer, "b")] == ["fps"]


def test_a_name_is_a_key_whichever_test_makes_it() -> None:
    """A recording without one is known by its test and step; the second of the same step by a number too."""
    named, unnamed = summary(named=True), summary("<lambda>", named=False)
    gatherer = Gatherer()
    gatherer.gather("a", [named, unnamed, unnamed])
    assert [(key["mode"], key.get("test")) for key in keys(gatherer, "a")] == [
        ("himap", None),
        ("<lambda>", "a"),
        ("<lambda> 2", "a"),
    ]
    assert of_summary(named, CPU, "a").key == of_summary(named, CPU, "b").key


def test_a_test_tried_again_tells_its_last_try() -> None:
    """Numbered from one again, and what a session fixture made in the first try is still its own."""
    gatherer = Gatherer()
    first = [summary("shared"), summary("<lambda>", 1000, named=False)]
    gatherer.begin("a")
    gatherer.gather("a", first)
    gatherer.begin("a")
    gatherer.gather("a", [*first, summary("<lambda>", 2000, named=False)])
    peaks = {dict(one.key)["mode"]: one.channels["requested_peak"].most_bytes for one in gatherer.entries("a", CPU)}
    assert peaks == {"shared": 1000, "<lambda>": 2000}


def test_facts_and_samples_are_part_of_the_key() -> None:
    """The project says model and dtype; samples are counted; what ran out of memory has no count."""
    facts = {"model": "7b", "dtype": "float16"}
    key = dict(of_summary(summary(facts=facts), CPU, "a").key)
    assert {name: key[name] for name in ("mode", "samples", "model", "dtype")} == {
        "mode": "himap",
        "samples": "2",
        **facts,
    }
    out = of_summary(summary(samples=None, laps=None, seconds=None, verdict="out of memory", channels={}), CPU, "a")
    assert "samples" not in dict(out.key)
    assert out.seconds is None


def test_growth_is_the_rate_of_what_grows() -> None:
    """Stable and plateau are 0, though their rate is not; undecided counts."""
    for verdict, growth in (("stable", 0.0), ("plateau", 0.0), ("undecided", 512.0), ("grows", 512.0)):
        channel = replace(summary().channels["requested_peak"], verdict=verdict, bytes_per_sample=512.0)
        assert of_summary(summary(channels={"requested_peak": channel}), CPU, "a").growth == growth


@pytest.fixture
def store(tmp_path: Path) -> str:
    return write_runs(tmp_path, [entry(1000)], [entry(1040, accepted=True)], [entry(1080)])


def test_a_test_is_held_to_the_recorded_base(store: str) -> None:
    """The accepted run, not the newest; a regression tells both figures."""
    assert error_of(Gate(store).findings([entry(1040)])) is None
    error = error_of(Gate(store).findings([entry(1041)]))
    assert isinstance(error, MemoryRegression)
    assert str(error) == (
        "himap: peak 1.02 KiB (1,041 B), 1 B (0.10%) more than 1.02 KiB (1,040 B) in run 0002; allowed 0 more"
    )
    assert error_of(Gate(store, criteria=["peak:5%"]).findings([entry(1092)])) is None
    assert error_of(Gate(store, "0003", ["peak:0"]).findings([entry(1080)])) is None
    assert isinstance(error_of(Gate(store, "0001", ["peak:0"]).findings([entry(1080)])), MemoryRegression)


def test_what_has_no_base_is_inconclusive_with_the_command(store: str) -> None:
    """New, never passed; a regression beside it comes first."""
    error = error_of(Gate(store).findings([entry(mode="fresh")]))
    assert isinstance(error, Inconclusive)
    assert str(error) == ("fresh is new: no run has measured it; record it with --benchmark-autosave --vram-accept")
    assert isinstance(error_of(Gate(store).findings([entry(mode="fresh"), entry(2000)])), MemoryRegression)
    assert isinstance(error_of(Gate(f"{store}/none").findings([entry()])), Inconclusive)


def test_a_run_that_is_not_there_is_refused_at_once(store: str) -> None:
    """Not when the first test is judged."""
    with pytest.raises(ValueError, match="no run is called 9"):
        Gate(store, "9").read()
    with pytest.raises(ValueError, match="a criterion must be"):
        Gate(store, criteria=["peak"])
