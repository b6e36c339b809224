"""The README tells the truth."""

from __future__ import annotations

from pathlib import Path

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


OPTIONS = ["device", "card", "laps", "samples", "report", "breakdown", "undecided", "accept", "compare", "disable"]


def test_the_failure_it_shows_is_the_one_that_is_printed(pytester: pytest.Pytester) -> None:
    """A step that keeps a 4 KiB tensor of each of 20 samples prints exactly the README's lines."""
    pytester.makepyfile(
        """
        import torch
        def test_inference_is_stable(vram):
            kept = []
            recording = vram.replay(lambda n: kept.append(torch.zeros(1024)), range(20), name="baseline")
            vram.assert_stable(recording)
        """
    )
    result = pytester.runpytest_subprocess("--vram-device", "cpu")
    result.assert_outcomes(failed=1)
    printed = [line for line in result.outlines if line.startswith("E ")]
    assert 3 < len(printed) <= 25
    assert "\n".join(printed) in README


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_it_names_exists(option: str, pytestconfig: pytest.Config) -> None:
    """Each option of the plugin is named in the README, and known to pytest."""
    assert f"--vram-{option}" in README
    pytestconfig.getoption(f"--vram-{option}")
