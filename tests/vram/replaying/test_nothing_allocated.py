"""A step on another device than the one measured: every check that would pass is inconclusive, with the way out."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import vram
from vram.history.compare import Located, judge
from vram.history.entries import of_summary
from vram.meters import default_meter, default_meters, torch_device
from vram.recording import Recording
from vram.session import SessionOptions, VramSession
from vram.verdict.summarize import summarize

WORDS = {
    "cpu": "nothing was allocated on cpu in any sample",
    "simulated": "nothing was allocated on cuda:0 of simulated",
}


def on(device: str, step: Callable[[int], object], **more: Any) -> Recording:
    return vram.replay(step, [1, 2, 3], meters=default_meters(device), **more)


def elsewhere(n: int) -> float:
    """Work on no device."""
    return float(n) ** 2


def kept_elsewhere() -> Callable[[int], object]:
    """A leak of tensors on the CPU, which a simulated card does not see."""
    layer, kept = torch.nn.Linear(64, 64).requires_grad_(False), list[torch.Tensor]()
    return lambda n: kept.append(layer(torch.zeros(n, 64)))


CHECKS: list[Callable[[Recording], object]] = [
    vram.assert_stable,
    lambda it: vram.assert_peak(it, "1 GiB"),
    lambda it: vram.assert_peak(it, "1 GiB", "allocated_peak"),
    lambda it: vram.assert_ratio(it, it, at_most=1),
]


@pytest.mark.parametrize("laps", [1, 5])
@pytest.mark.parametrize(("device", "step"), [("cpu", elsewhere), ("simulated", kept_elsewhere())])
def test_a_pass_that_says_nothing_of_the_step_is_inconclusive(
    device: str, step: Callable[[int], object], laps: int
) -> None:
    """Growth, peak and ratio, of one lap or five; other tensors that are alive on the device change nothing."""
    with default_meter(device).watching():
        weights = torch.zeros(1000, device=torch_device(device))
    recording = on(device, step, laps=laps)
    assert recording.before["requested"] >= weights.nbytes
    for check in CHECKS:
        with pytest.raises(vram.Inconclusive, match=re.escape(WORDS[device])) as failure:
            check(recording)
        assert "are model and samples on `vram.torch_device`?" in str(failure.value)
    summary = summarize(recording)
    assert (summary.outcome, summary.verdict) == ("inconclusive", None)
    assert [WORDS[device] in reason for reason in summary.reasons] == [True]


@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_a_step_that_rightly_allocates_nothing_can_say_so(device: str) -> None:
    """`allocates=False`: it is judged by its figures, and passes."""
    recording = on(device, elsewhere, allocates=False)
    for check in CHECKS:
        check(recording)
    assert summarize(recording).outcome == "stable"


@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_one_sample_that_allocates_is_enough(device: str) -> None:
    """An index of images, of which most are answered from a cache."""
    recording = on(device, lambda n: torch.zeros(n, device=torch_device(device)) if n == 2 else None)
    for check in CHECKS:
        check(recording)


def test_what_fails_still_fails() -> None:
    """Weights over their limit are over it, whatever the step does; the host's figures are its own."""
    weights = torch.zeros(1000)
    recording = on("cpu", elsewhere)
    with pytest.raises(vram.PeakExceeded):
        vram.assert_peak(recording, weights.nbytes - 1)
    reference = on("cpu", lambda n: torch.zeros(n))
    with pytest.raises(vram.RatioExceeded):
        vram.assert_ratio(recording, reference, at_most=0.5)
    if "host" in recording.channels:
        vram.assert_peak(recording, "1 TiB", "host")


def test_a_reference_that_allocated_nothing_is_no_reference() -> None:
    """With the weights in both, a ratio of it would mostly pass."""
    weights = torch.zeros(10**6)
    recording, reference = on("cpu", lambda n: torch.zeros(n)), on("cpu", elsewhere, name="reference")
    with pytest.raises(vram.Inconclusive, match="reference: nothing was allocated on cpu"):
        vram.assert_ratio(recording, reference, at_most=1.5)
    assert weights.nbytes == 4 * 10**6


def test_no_budget_is_written_from_it(tmp_path: Path) -> None:
    """`--vram-accept` on the wrong device leaves the budgets as they are."""
    path = tmp_path / "budgets.toml"
    path.write_text('[[budget]]\nmode = "a"\npeak_bytes = 5000000000\n')
    session = VramSession(SessionOptions(device="simulated", accept=True))
    recording = session.replay(elsewhere, [1, 2])
    with pytest.raises(vram.Inconclusive, match="nothing was allocated"):
        session.assert_peak(recording, session.budget(path, mode="a"))
    assert "5000000000" in path.read_text()
    assert session.summary(recording).outcome == "inconclusive"


def test_a_measured_block_says_whether_it_allocated_anything() -> None:
    """`vram.measure` has no verdict: who compares its figures can ask."""
    with vram.measure("cpu") as idle:
        elsewhere(3)
    with vram.measure("cpu") as busy:
        torch.zeros(10).sum()
    assert (idle.nothing_allocated, busy.nothing_allocated) == (True, False)


PROJECT = """
    import pytest, torch
    KEPT, LAYER = [], torch.nn.Linear(64, 64).requires_grad_(False)
    limit, leak_free = pytest.mark.vram_limit, pytest.mark.vram_leak_free
    def answer(n): KEPT.append(LAYER(torch.zeros(n, 64)))
    def test_growth(vram): vram.assert_stable(vram.replay(answer, [1, 2], name="on the CPU"))
    def test_peak(vram): vram.assert_peak(vram.replay(answer, [1, 2], laps=1, name="one lap"), "24 GiB")
    def test_said(vram): vram.assert_stable(vram.replay(len, ["a"], name="said", allocates=False))
    @limit("1 GiB")
    def test_limit(vram): answer(3)
    @leak_free
    def test_leak_free(vram): answer(3)
    @leak_free
    @limit("1 MiB")
    def test_both(vram): answer(3)
    @limit("0 B")
    def test_nothing_allowed(vram): answer(3)
    @limit("1 MiB", allocates=False)
    def test_limit_said(vram): answer(3)
    @leak_free(allocates=False)
    def test_leak_free_said(vram): answer(3)
    @limit("1 GiB")
    def test_measured(vram): torch.zeros(3, device=vram.torch_device)
    @limit("1 GiB")
    def test_own_error(vram): assert answer(3), "mine"
"""


def test_on_the_terminal_and_in_the_report(pytester: pytest.Pytester) -> None:
    """A model that was left on the CPU, on a simulated card: skips with the reason, and a line in the summary."""
    pytester.makepyfile(PROJECT)
    result = pytester.runpytest("--vram-device", "simulated", "-rs", "--vram-report", "r.json", "--junit-xml", "j.xml")
    result.assert_outcomes(passed=5, skipped=5, failed=1)
    lines = [line for line in result.outlines if line.startswith("SKIPPED")]
    assert len(lines) == 5
    assert all("inconclusive" in line and "nothing was allocated on cuda:0 of simulated" in line for line in lines)
    result.stdout.fnmatch_lines(["no decision on 5 of *", "on the CPU: inconclusive: nothing was allocated on cuda:0*"])
    report = vram.summary.reader.read_run(pytester.path / "r.json")
    assert {one.name: one.outcome for one in report.recordings} == {
        "on the CPU": "inconclusive",
        "one lap": "inconclusive",
        "said": "stable",
    }
    assert {test.test.partition("::")[2]: test.outcome for test in report.tests} == {
        "test_limit": "inconclusive",
        "test_leak_free": "inconclusive",
        "test_both": "inconclusive",
        "test_nothing_allowed": "passed",
        "test_limit_said": "passed",
        "test_leak_free_said": "passed",
        "test_measured": "passed",
    }


def test_on_the_cpu_a_marked_test_without_tensors_is_an_ordinary_test(pytester: pytest.Pytester) -> None:
    """There is hardly another device to be on, and a marker on a whole module is on those tests too."""
    pytester.makepyfile(
        """
        import pytest
        pytestmark = [pytest.mark.vram_leak_free, pytest.mark.vram_limit("1 MiB")]
        def test_words(): assert "a".upper() == "A"
        """
    )
    pytester.runpytest("--vram-device", "cpu").assert_outcomes(passed=1)


@pytest.mark.parametrize("laps", [1, 5])
def test_it_is_no_side_of_a_comparison(laps: int) -> None:
    """Less than its base is no improvement, and as a base it would let nothing pass: neither is compared."""
    idle, busy = (
        of_summary(summarize(on("cpu", step, laps=laps, name="m")), {}, "test")
        for step in (elsewhere, lambda n: torch.zeros(n))
    )
    for head, base in ((idle, busy), (busy, idle)):
        judged = judge(head, Located("0001", base))
        assert judged.status == "inconclusive"
        assert "nothing was allocated on cpu" in judged.reason
    assert judge(busy, Located("0001", busy)).status == "same"
