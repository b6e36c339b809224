"""A bounded cache that is declared: it fills within its budget, and the replay ends early."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

import vram

ENTRY_BYTES = 1024


def filling(entries: int) -> Callable[[object], object]:
    """A cache with a new entry of 1 KiB in every run, until it is full."""
    cache: list[torch.Tensor] = []

    def step(_: object) -> None:
        torch.zeros(3000)  # no peak of its own
        if len(cache) < entries:
            cache.append(torch.zeros(ENTRY_BYTES // 4))

    return step


def test_a_declared_cache_passes_after_the_first_laps() -> None:
    """Given to the replay, the loop's own judging knows of it: five laps, and no more."""
    declared = vram.replay(filling(10**6), range(20), cache_budget=f"{100 * ENTRY_BYTES} B")
    undeclared = vram.replay(filling(10**6), range(20))
    assert (declared.laps, undeclared.laps > 5) == (5, True)
    vram.assert_stable(declared)
    with pytest.raises(vram.MemoryGrowth):
        vram.assert_stable(undeclared)


def test_what_outgrows_its_budget_grows() -> None:
    """A budget of ten entries for a cache without bounds."""
    recording = vram.replay(filling(10**6), range(20), cache_budget=10 * ENTRY_BYTES)
    with pytest.raises(vram.MemoryGrowth):
        vram.assert_stable(recording)


def test_it_can_be_declared_where_it_is_judged() -> None:
    """`assert_stable` replaces the replay's; the recording is the same."""
    recording = vram.replay(filling(10**6), range(20))
    vram.assert_stable(recording, cache_budget="1 MiB")
    with pytest.raises(vram.MemoryGrowth):
        vram.assert_stable(recording)


def test_a_budget_that_cannot_be_read_is_refused() -> None:
    """Before anything runs."""
    ran: list[object] = []
    with pytest.raises(ValueError, match="a size must be a number and one of"):
        vram.replay(ran.append, [0], cache_budget="much")
    assert ran == []


def test_the_fixture_and_the_report_say_it(pytester: pytest.Pytester) -> None:
    """The verdict in the summary is the one that was asserted, and names the budget it rests on."""
    pytester.makepyfile(
        """
        import torch
        CACHE = []
        def answer(_):
            torch.zeros(3000)
            CACHE.append(torch.zeros(256))
        def test_replay(vram): vram.assert_stable(vram.replay(answer, range(20), name="a", cache_budget="1 MiB"))
        def test_judged(vram):
            vram.assert_stable(vram.replay(answer, range(20), name="b"), cache_budget=2 * 2**20)
        """
    )
    result = pytester.runpytest("--vram-device", "cpu", "--vram-report", "r.json")
    result.assert_outcomes(passed=2)
    modes = json.loads((pytester.path / "r.json").read_text())["modes"]
    assert [(mode["mode"], mode["outcome"], mode["cache_budget_bytes"]) for mode in modes] == [
        ("a", "plateau", 2**20),
        ("b", "plateau", 2**21),
    ]
    assert modes[0]["laps"] == 5
