"""Tests that a push runs, and those that wait for `--full`: the root conftest.py, in a run of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

def test_plain(): ...

@pytest.mark.full
def test_repeated(): ...

@pytest.mark.share(3)
@pytest.mark.parametrize("a", range(2))
@pytest.mark.parametrize("b", [0, pytest.param(1, marks=pytest.mark.full), 2, 3])
def test_many(a, b): ...

class TestOther:
    @pytest.mark.share(3)
    @pytest.mark.parametrize("a", range(4))
    def test_many(self, a): ...
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project with this one's conftest.py and markers, and a test of each kind."""
    pytester.makeconftest((ROOT / "conftest.py").read_text(encoding="utf-8"))
    pytester.makeini((ROOT / "pytest.ini").read_text(encoding="utf-8"))
    pytester.makepyfile(test_kinds=TESTS)
    return pytester


def collected(project: pytest.Pytester, *arguments: str) -> list[str]:
    """Names of the tests that are chosen, without their file."""
    result = project.runpytest("--collect-only", "-q", "-p", "no:cacheprovider", *arguments)
    return [line.partition("::")[2] for line in result.outlines if "::" in line]


def test_a_push_runs_a_share_and_nothing_that_is_marked_full(project: pytest.Pytester) -> None:
    """Each third case from the first on, counted for each test and without those that are marked `full`."""
    assert collected(project, "test_kinds.py") == [
        "test_plain", "test_many[0-0]", "test_many[2-1]", "TestOther::test_many[0]", "TestOther::test_many[3]"
    ]  # fmt: skip


def test_full_runs_everything(project: pytest.Pytester) -> None:
    """With `--full` nothing is left out."""
    assert len(collected(project, "test_kinds.py", "--full")) == 1 + 1 + 2 * 4 + 4


def test_a_case_that_is_named_runs(project: pytest.Pytester) -> None:
    """One of a share by its id, without --full."""
    assert collected(project, "test_kinds.py::TestOther::test_many[1]") == ["TestOther::test_many[1]"]
