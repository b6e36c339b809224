"""A peak over its limit: what was alive then, by line, and what of it was there before."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vram
from vram.errors import PeakExceeded
from vram.explanation.peak import PeakExplanation, explained_peak
from vram.session import SessionOptions, VramSession
from vram.units import format_bytes

KIB = 1024


def failure(check: Any, *args: Any, **kwargs: Any) -> list[str]:
    """The lines of what the check raises."""
    with pytest.raises((vram.PeakExceeded, vram.RatioExceeded)) as caught:
        check(*args, **kwargs)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 25
    return lines


def doubled(n: int) -> torch.Tensor:
    first = torch.zeros(n, 256)
    return torch.cat([first, first])


def test_the_lines_at_the_peak_are_named() -> None:
    """Lines of the highest sample, most bytes first, each with all its figures; one is what was there before."""
    weights = torch.zeros(100, 256)
    recording = vram.replay(doubled, [4, 16, 8], name="answers", laps=3)
    lines = failure(vram.assert_peak, recording, recording.before["requested"] + 40 * KIB)
    assert "answers: requested_peak peak" in lines[0]
    assert lines[1] == f"  of which {format_bytes(recording.before['requested'])} was alive before the first sample"
    assert lines[2].startswith("  alive at the peak of sample 1, run again with tracing: ")
    made = [line for line in lines if "test_peak.py" in line]
    assert made[0].startswith("    32.00 KiB in 1: ")
    assert made[0].endswith(" doubled: aten.cat float32 [32, 256]")
    assert made[1].startswith("    16.00 KiB in 1: ")
    assert made[1].endswith(" doubled: aten.zeros float32 [16, 256]")
    assert any("before the sample: weights" in line for line in lines)
    assert lines[-1] == "  to leave out what was alive before: assert_peak(..., above_start=True)"
    assert weights.numel()


def test_lines_beyond_twelve_are_summed() -> None:
    """The report has the twelve largest and one for the rest; the terminal as many as fit: nothing is left out."""

    def many(sample: int) -> list[torch.Tensor]:
        lines = "\n".join(f"tensors.append(torch.zeros({n + 1}, 256))" for n in range(20))
        tensors: list[torch.Tensor] = []
        exec(compile(lines, "twenty.py", "exec"), {"torch": torch, "tensors": tensors})  # noqa: S102 - twenty lines
        return tensors

    recording = vram.replay(many, [0], laps=3)
    with pytest.raises(vram.PeakExceeded) as caught:
        vram.assert_peak(recording, "1 KiB", above_start=True)
    broken_down = explained_peak(recording, "requested_peak").at_peak
    assert broken_down is not None
    assert [line["bytes"] // KIB for line in broken_down["lines"][:12]] == list(range(20, 8, -1))
    rest = broken_down["lines"][12]
    assert (rest["line"], rest["bytes"], rest["count"]) == ("8 more lines", 36 * KIB, 8)
    assert broken_down["bytes"] == sum(line["bytes"] for line in broken_down["lines"]) == 210 * KIB
    assert str(caught.value).splitlines()[-1] == "    and 55.00 KiB in 10 more lines"


def test_above_the_start() -> None:
    """Exactly what the samples need passes, whatever was alive before; one byte less does not, and offers no more."""
    weights = torch.zeros(100, 256)
    recording = vram.replay(doubled, [4, 16], laps=3)
    vram.assert_peak(recording, 48 * KIB, above_start=True)
    vram.assert_peak(recording, 48 * KIB, "allocated_peak", above_start=True)
    lines = failure(vram.assert_peak, recording, 48 * KIB - 1, above_start=True)
    assert "is 1 B over" in lines[0]
    assert "above what was alive before the first sample" in lines[0]
    assert lines[1].startswith("  besides ")
    assert not any("above_start=True" in line or "leave out" in line for line in lines)
    with pytest.raises(ValueError, match="give besides_bytes or above_start, not both, got 5 B and True"):
        vram.assert_peak(recording, 1, besides_bytes=5, above_start=True)
    assert weights.numel()


def test_a_ratio_above_the_start_of_each() -> None:
    """Weights that both have hide how much more one needs; the lines are those of the sample that needs most more."""
    weights = torch.zeros(1000, 256)
    ours = vram.replay(doubled, [4, 16], laps=3, name="ours")
    theirs = vram.replay(lambda n: torch.zeros(n, 256), [4, 4], laps=3, name="theirs")
    vram.assert_ratio(ours, theirs, at_most=2)
    vram.assert_ratio(ours, theirs, at_most=12, above_start=True)
    lines = failure(vram.assert_ratio, ours, theirs, at_most=11, above_start=True)
    assert "  alive at the peak of sample 1, run again with tracing" in "\n".join(lines)
    assert any(line.endswith("doubled: aten.cat float32 [32, 256]") for line in lines)
    lines = failure(vram.assert_ratio, ours, theirs, at_most=0.5)
    assert lines[-1] == "  to leave out what was alive before: assert_ratio(..., above_start=True)"
    assert weights.numel()


def test_a_ratio_names_the_sample_that_exceeds_it_most() -> None:
    """Another one has the higher peak."""
    ours = vram.replay(doubled, [8, 16], laps=3, name="ours")
    theirs = vram.replay(lambda n: torch.zeros(n, 256), [1, 40], laps=3, name="theirs")
    lines = failure(vram.assert_ratio, ours, theirs, at_most=2, above_start=True)
    assert "  alive at the peak of sample 0, run again with tracing" in "\n".join(lines)


def test_a_breakdown_is_of_the_sample_with_the_recorded_peak() -> None:
    """Many small blocks need most of the card, and one large tensor is the peak that was requested: what another
    channel's highest sample has is not said to be that peak, and does not take the place of what is known of it."""
    session = VramSession(SessionOptions(device="simulated", breakdown="settled"))

    def step(n: int) -> None:
        [torch.zeros(8, device="cuda") for _ in range(n)] or torch.zeros(20_000, device="cuda")

    recording = session.replay(step, [0, 200], laps=1)
    known = session.summaries[0].breakdown
    assert known is not None
    assert (known.sample, known.peak_bytes) == (0, recording.peak_bytes())
    explanation = explained_peak(recording, "allocated_peak", known=session.summaries[0].at_peak)
    assert explanation.at_peak is not None
    assert explanation.at_peak["sample"] == 1
    assert not explanation.at_peak.keys() & {"breakdown", "no_breakdown"}
    with pytest.raises(PeakExceeded, match="alive at the peak of sample 1"):
        session.assert_peak(recording, 1, "allocated_peak")
    assert session.summaries[0].breakdown == known


def test_others_have_no_more_than_was_there_before() -> None:
    """Tests that left tensors after the recording began are no part of it; a short text stays short."""
    weights = torch.zeros(100, 256)
    recording = vram.replay(doubled, [4], laps=3)
    earlier: Any = SimpleNamespace(left=lambda *_: (2**40, "list `KEPT`"))
    explanation = explained_peak(recording, "requested_peak", earlier=earlier)
    assert explanation.others_bytes == recording.before["requested"] >= weights.nbytes
    gone = PeakExplanation(1, None, "the lines are not known")
    assert [len(gone.text(most, offer="above_start=True")) for most in (1, 2, 3, 4)] == [1, 2, 3, 3]


def test_a_creeping_peak_has_its_first_and_last_shape() -> None:
    """Each call works on one row more."""
    rows: list[int] = []

    def creeps(sample: int) -> None:
        rows.append(sample)
        torch.zeros(1, len(rows), 64)

    recording = vram.replay(creeps, range(20), laps=3)
    runs = recording.runs
    lines = failure(vram.assert_peak, recording, 1)
    assert any(line.endswith(f"aten.zeros float32 [1, {runs + 1}..{runs + 2}, 64]") for line in lines)


@pytest.mark.parametrize("error", [ValueError("mine"), pytest.fail.Exception("mine"), SystemExit(3)])
def test_a_step_that_fails_when_it_runs_again_loses_no_verdict(error: BaseException) -> None:
    """Whatever it raises: the limit is exceeded, and why there are no lines is said."""
    broken: list[int] = []

    def step(n: int) -> torch.Tensor:
        if broken:
            raise error
        return torch.zeros(n)

    recording = vram.replay(step, [64], laps=3)
    broken.append(1)
    lines = failure(vram.assert_peak, recording, 1)
    assert any(f"the lines are not known: run again, sample 0 raised {type(error).__name__}" in line for line in lines)


def test_a_model_that_is_gone_is_no_more_kept_for_it() -> None:
    """A recording that passed keeps none: without its step there are no lines, and how to have them is said."""
    model = torch.nn.Linear(64, 64)
    alive = weakref.ref(model)
    recording = vram.replay(model, [torch.zeros(1, 64)], laps=3)
    vram.assert_stable(recording)
    lines = failure(vram.assert_peak, recording, 1)
    assert any("Linear" in line or "aten." in line for line in lines)
    del model
    gc.collect()
    assert alive() is None
    lines = failure(vram.assert_peak, recording, 1)
    assert any("--vram-breakdown" in line for line in lines)


OTHERS = """
    import pytest, torch
    KEPT = []
    MODULES = torch.zeros(5 * 256)

    @pytest.fixture(scope="session")
    def model():
        return torch.nn.Linear(64, 64)
    @pytest.fixture(scope="session")
    def other_model():
        return torch.nn.Linear(256, 256)
    @pytest.fixture(scope="session")
    def shared(vram, model):
        return vram.replay(model, [torch.zeros(n, 64) for n in (1, 32)], name="shared", laps=3)

    def test_leaves(): KEPT.append(torch.zeros(7 * 256))
    def test_uses(vram, model, shared): pass
    def test_peak(vram, model, shared):
        recording = vram.replay(lambda x: model(x), [torch.zeros(n, 64) for n in (1, 32)], laps=3)
        vram.assert_stable(recording)
        assert recording.before["requested"] - 32 * 64 * 4 - 64 * 4 == shared.before["requested"] - 33 * 64 * 4
        vram.assert_peak(recording, 1)
    def test_shared(vram, shared): vram.assert_peak(shared, 1)
    def test_uses_other(vram, other_model): pass
    def test_others(vram):
        vram.assert_peak(vram.replay(torch.zeros, [5], laps=3), 1)
"""


def test_what_other_tests_left_is_named(pytester: pytest.Pytester) -> None:
    """Not what the test uses, nor what modules keep; samples made in the call are known until the next recording."""
    gc.unfreeze()
    pytester.makepyfile(OTHERS)
    result = pytester.runpytest_inprocess("--vram-device", "cpu", "--vram-report", "r.json", "-p", "no:xdist")
    result.assert_outcomes(passed=3, failed=3)
    kept = "list `KEPT` (1 item), global of module test_what_other_tests_left_is_named"
    result.stdout.fnmatch_lines(
        [
            f"E * of which * before the first sample; 7.00 KiB from other tests, held by: {kept}",
            "E * in 1: test_*.py:* <lambda>: aten.addmm float32 [[]32, 64[]]",
            f"E * of which * before the first sample; 7.00 KiB from other tests, held by: {kept}",
            "E * the lines are not known: the step or its samples are gone; *",
            "E * from other tests, held by: parameter `weight` of *, attribute of the session fixture `other_model`",
        ]
    )
