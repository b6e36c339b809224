"""Options in pytest 9's own TOML files, whose values have types."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.skipif(pytest.version_tuple < (9,), reason="TOML with types is pytest 9's")

# Each option, as somebody would write it there.
TOML = """
[pytest]
addopts = ["-p", "no:asyncio", "-p", "no:xdist"]
vram_device = "cpu"
vram_card = "24GiB"
vram_laps = 7
vram_samples = 3
vram_max_seconds = 60
vram_report = "r.json"
vram_undecided = "skip"
vram_new = "skip"
vram_accept = false
vram_breakdown = true
vram_disable = false
vram_compare_fail = ["peak:2%", "growth:0"]
"""
SUITE = """
import torch
def test_options(vram):
    assert (vram.options.samples, vram.options.card, vram.options.accept) == (3, "24GiB", False)
    vram.replay(lambda n: torch.zeros(n), [1], name="only")
"""


def test_every_option_has_its_type(pytester: pytest.Pytester) -> None:
    """Whole numbers, texts, lists and booleans; the command line goes first."""
    (pytester.path / "pytest.toml").write_text(TOML)
    pytester.makepyfile(SUITE)
    pytester.runpytest().assert_outcomes(passed=1)
    (only,) = json.loads((pytester.path / "r.json").read_text())["modes"]
    assert (only["laps"], bool(only["at_peak"])) == (7, True)
    pytester.runpytest("--vram-laps=4").assert_outcomes(passed=1)
    (only,) = json.loads((pytester.path / "r.json").read_text())["modes"]
    assert only["laps"] == 4


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("vram_laps = 0", "--vram-laps must be a whole number of at least 1, got 0"),
        ("vram_laps = true", "vram_laps"),
        ("vram_laps = 1.5", "vram_laps"),
        ("vram_samples = [1]", "vram_samples"),
        ("vram_accept = 'yes'", "vram_accept"),
        ("vram_compare_fail = 'peak:2%'", "vram_compare_fail"),
        ("vram_report = 1", "vram_report"),
        ("vram_new = 'ignore'", "--vram-new must be fail or skip, got 'ignore'"),
    ],
)
def test_another_type_is_a_usage_error(pytester: pytest.Pytester, line: str, message: str) -> None:
    """One line that names the option, before anything is collected."""
    (pytester.path / "pytest.toml").write_text(f"[pytest]\naddopts = ['-p', 'no:asyncio', '-p', 'no:xdist']\n{line}\n")
    pytester.makepyfile(SUITE)
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{message}*"])
