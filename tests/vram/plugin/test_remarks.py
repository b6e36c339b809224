"""Remarks on simulated figures, on what pytest prints and writes."""

from __future__ import annotations

import json

import pytest

PROJECT = """
    import pytest, torch

    def convolve(side):
        return torch.nn.functional.conv2d(torch.ones(1, 8, side, side, device="cuda"), torch.ones(8, 8, 3, 3).cuda())

    def test_recorded(vram):
        vram.assert_peak(vram.replay(convolve, [32, 64], laps=1, name="conv"), "1 GiB")
        vram.replay(lambda side: torch.ones(side, device="cuda"), [64], laps=1, name="plain")

    @pytest.mark.vram_limit("1 GiB")
    def test_marked():
        convolve(64)
"""


@pytest.mark.filterwarnings("ignore:simulated CUDA is tested with torch")
def test_remarks_are_printed_once_and_written_and_fail_nothing(pytester: pytest.Pytester) -> None:
    """One line for what recordings and marked tests have in common, with their names."""
    path = pytester.makepyfile(PROJECT)
    result = pytester.runpytest("--vram-device", "simulated", "--vram-report", "report.json")
    result.assert_outcomes(passed=2)
    remark = f"not counted: cuDNN's workspace of a convolution, at the peak, {path.name}:4 convolve"
    lines = [line for line in result.outlines if line.startswith("not counted")]
    assert lines == [f"{remark} (conv, {path.name}::test_marked)"]
    report = json.loads((pytester.path / "report.json").read_text())
    assert [mode.get("remarks") for mode in report["modes"]] == [[remark], None]
    assert [test.get("remarks") for test in report["tests"]] == [[remark]]
