"""docs/budgets.md: each example runs, and writes the file that stands below it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from vram.budgets.headroom import parse_headroom

PAGE = (Path(__file__).parents[3] / "docs" / "budgets.md").read_text(encoding="utf-8")
EXAMPLES = {text.splitlines()[0].removeprefix("# "): text for text in re.findall(r"```python\n(.*?)```", PAGE, re.S)}
FILES = [tomllib.loads(text)["budget"] for text in re.findall(r"```toml\n(.*?)```", PAGE, re.S)]
RUN = ("--vram-device", "cpu", "-p", "no:benchmark")


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    for name, text in EXAMPLES.items():
        (pytester.path / name).write_text(text)
    return pytester


def budgets(project: pytest.Pytester) -> list[dict[str, object]]:
    return tomllib.loads((project.path / "budgets.toml").read_text())["budget"]


def test_the_first_budget(project: pytest.Pytester) -> None:
    """New, accepted, passed; then with headroom, as the page shows it."""
    new = project.runpytest(*RUN, "-rs", "test_unet.py")
    new.assert_outcomes(skipped=1)
    new.stdout.fnmatch_lines(["*new: no budget unet in budgets.toml; record it with --vram-accept*"])
    accepted = project.runpytest(*RUN, "test_unet.py", "--vram-accept")
    accepted.stdout.fnmatch_lines(["budgets accepted in budgets.toml: 1 changed"])
    assert budgets(project) == FILES[0]
    project.runpytest(*RUN, "test_unet.py").assert_outcomes(passed=1)

    more = project.runpytest(*RUN, "test_unet.py", "--vram-accept=+2%")
    shown = re.search(r"accept=\+2%\n(.*?)```", PAGE, re.S)
    assert shown is not None
    assert shown[1] in more.stdout.str()
    assert budgets(project) == FILES[2]
    limit_bytes = parse_headroom("2%").above(65536)
    assert f"{limit_bytes:,} B (65.28 KiB), the recorded 65,536 B + 2%" in PAGE
    assert "65.28 KiB (+2%)" in project.runpytest(*RUN, "test_unet.py").stdout.str()


def test_facts(project: pytest.Pytester) -> None:
    """A budget of each dtype, with device and version."""
    project.runpytest(*RUN, "test_facts.py", "--vram-accept").assert_outcomes(passed=2)
    version = budgets(project)[0]["torch"]
    assert budgets(project) == [{**budget, "torch": version} for budget in FILES[1]]


def test_what_others_keep(project: pytest.Pytester) -> None:
    """The two budgets differ by the weights of the own model, whatever else is alive."""
    project.runpytest(*RUN, "test_activations.py", "test_beside.py", "--vram-accept").assert_outcomes(passed=2)
    activations, own = (budget["peak_bytes"] for budget in budgets(project))
    weights_bytes = (1024 * 1024 + 1024) * 4
    assert isinstance(activations, int)
    assert own == activations + weights_bytes
    assert f"{weights_bytes:,} B more" in PAGE
