"""A recording without a budget or a base is not passed: with `--vram-new fail`, as in CI, it fails the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed")

SUITE = """
    import os
    import pytest
    import torch
    NAMES = os.environ.get("NAMES", "first second").split()
    MARKS = () if os.environ.get("UNMARKED") else (pytest.mark.vram_limit("1 GiB"),)
    @pytest.fixture
    def recordings(vram):
        with torch.inference_mode():
            return [vram.replay(lambda n: torch.zeros(1000), [1, 2], name=name, laps=3) for name in NAMES]
    def test_named(recordings): pass
    def test_budget(recordings, vram):
        vram.assert_peak(recordings[0], vram.budget(os.environ.get("BUDGETS", "budgets.toml"), mode="a"))
    @pytest.mark.parametrize("size", [pytest.param(256, marks=MARKS)])
    def test_marked(size): torch.zeros(size)
    def test_other(): pass
"""
RUN = ("--vram-device", "cpu", "--benchmark-quiet", "--vram-report", "r.json")
SAVE, COMPARE = ("--benchmark-autosave",), ("--vram-compare",)
NO_BUDGET = ("-k", "not budget")


@pytest.fixture(autouse=True)
def _suite(pytester: pytest.Pytester) -> None:
    # Asking what the processor is takes longer than all the rest.
    pytester.makeconftest("def pytest_benchmark_generate_machine_info(): return {}")
    warnings = "filterwarnings =\n    error\n    ignore::pytest.PytestAssertRewriteWarning\n"
    pytester.makeini(f"[pytest]\naddopts = -p no:asyncio -p no:xdist\n{warnings}")
    pytester.makepyfile(test_suite=SUITE)


def report(pytester: pytest.Pytester) -> Mapping[str, Any]:
    data: Mapping[str, Any] = json.loads((pytester.path / "r.json").read_text())
    return data


@pytest.mark.share(2)
@pytest.mark.parametrize(
    ("ci", "option", "ini", "fails"),
    [
        (None, None, None, False),
        ("true", None, None, True),
        ("1", None, None, True),
        ("false", None, None, False),
        ("true", "skip", None, False),
        (None, "fail", None, True),
        ("true", None, "skip", False),
        (None, None, "fail", True),
        (None, "skip", "fail", False),
    ],
)
def test_a_budget_that_nobody_recorded(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    ci: str | None,
    option: str | None,
    ini: str | None,
    fails: bool,
) -> None:
    """Fails in CI, is a skip elsewhere; the option comes before the ini file, and that before CI."""
    if ci is not None:
        monkeypatch.setenv("CI", ci)
    chosen = ([f"--vram-new={option}"] if option else []) + ([f"-ovram_new={ini}"] if ini else [])
    result = pytester.runpytest(*RUN, *chosen, "-k", "budget", "-rs")
    result.assert_outcomes(**{"failed" if fails else "skipped": 1})
    assert result.ret == int(fails)
    line = "new: no budget a in budgets.toml; record it with --vram-accept (there is no such file)"
    result.stdout.fnmatch_lines([f"E *NotRecorded: {line}" if fails else f"SKIPPED *inconclusive: {line}"])
    (first, _) = report(pytester)["modes"]
    assert (first["outcome"], first["new_fails"]) == ("new", fails)
    assert report(pytester)["headline"] == (
        "1 of 2 needs attention: 1 new, 1 stable" if fails else "no decision on 1 of 2: 1 new, 1 stable"
    )
    assert [failure["kind"] for failure in report(pytester)["failures"]] == ["NotRecorded"] * fails


def test_a_base_that_nobody_recorded(pytester: pytest.Pytester) -> None:
    """Every test that measures fails, marked ones too, and no surface says that one of them passed."""
    result = pytester.runpytest(*RUN, *NO_BUDGET, *COMPARE, "--vram-new=fail")
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(
        [
            "E *NotRecorded: first is new: no run has measured it; record it with --benchmark-autosave --vram-accept;*",
            "3 of 3 need attention: 2 new, 1 marked test new",
            "test_suite.py::test_marked* new: no run has measured it; record it*",
        ]
    )
    softened = pytester.runpytest(*RUN, *NO_BUDGET, *COMPARE, "--vram-new=skip")
    softened.assert_outcomes(skipped=2, passed=1)
    softened.stdout.fnmatch_lines(["no decision on 3 of 3: 2 new, 1 marked test new"])


def test_a_recording_by_another_name_fails_until_it_is_accepted(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new name has no base, the old one is missing; an accept takes the one up and lets the other go."""
    pytester.runpytest(*RUN, *NO_BUDGET, *SAVE).assert_outcomes(passed=3)
    pytester.runpytest(*RUN, *NO_BUDGET, *COMPARE, "--vram-new=fail").assert_outcomes(passed=3)
    monkeypatch.setenv("NAMES", "renamed second")
    for _ in range(2):  # saving what is new makes nothing of it a base
        result = pytester.runpytest(*RUN, *NO_BUDGET, *COMPARE, "--vram-new=fail")
        result.assert_outcomes(failed=1, passed=2)
    pytester.runpytest(*RUN, *NO_BUDGET, *SAVE, "--vram-accept").assert_outcomes(passed=3)
    pytester.runpytest(*RUN, *NO_BUDGET, *COMPARE, "--vram-new=fail").assert_outcomes(passed=3)


@pytest.mark.share(3)
@pytest.mark.parametrize("change", [{"NAMES": "first"}, {"UNMARKED": "1"}])
@pytest.mark.parametrize("new", ["fail", "skip"])
def test_a_recording_that_a_passing_test_no_longer_makes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], new: str
) -> None:
    """Every test passes and the run does not; where new is skipped it is a line of the summary and of the report.

    A push has each change once, and each value of the option.
    """
    pytester.runpytest(*RUN, *NO_BUDGET, *SAVE).assert_outcomes(passed=3)
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    result = pytester.runpytest(*RUN, *NO_BUDGET, *COMPARE, f"--vram-new={new}")
    result.assert_outcomes(passed=3)
    assert result.ret == int(new == "fail")
    name = "test_suite.py::test_marked[[]256]" if "UNMARKED" in change else "second"
    line = f"{name}: in run 0001, not measured in this run"
    result.stdout.fnmatch_lines([line])
    assert report(pytester)["missing"] == [line.replace("[[]", "[")]
    begin = "1 of 3 needs attention" if new == "fail" else "no decision on 1 of 3"
    assert report(pytester)["headline"].startswith(f"{begin}: ")
    assert report(pytester)["headline"].endswith(", 1 missing")
    assert ("::error title=missing recording::" in result.stdout.str()) == (new == "fail")


def test_tests_that_were_not_run_miss_nothing(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the suite is judged as that part; a test that was skipped says so itself."""
    pytester.runpytest(*RUN, *NO_BUDGET, *SAVE).assert_outcomes(passed=3)
    part = pytester.runpytest(*RUN, "-k", "marked", *COMPARE, "--vram-new=fail")
    part.assert_outcomes(passed=1)
    assert part.ret == 0
    monkeypatch.setenv("UNMARKED", "1")
    assert pytester.runpytest(*RUN, *NO_BUDGET, *COMPARE, "--vram-new=fail", "--vram-disable").ret == 0


def test_another_machine_misses_nothing(pytester: pytest.Pytester) -> None:
    """A run that was measured elsewhere is new here, and nothing of it is missing."""
    pytester.runpytest(*RUN, *NO_BUDGET, *SAVE).assert_outcomes(passed=3)
    (file,) = pytester.path.glob(".benchmarks/*/*.json")
    file.write_text(file.read_text().replace('"platform": "', '"platform": "Other '))
    pytester.runpytest(*RUN, *NO_BUDGET, *COMPARE, "--vram-new=skip").assert_outcomes(skipped=2, passed=1)
    assert report(pytester)["missing"] == []


def test_the_first_run_of_a_project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """In CI too: forced, an accept records budgets and base, and from then on the run passes to the byte."""
    monkeypatch.setenv("CI", "true")
    assert pytester.runpytest(*RUN, *COMPARE).ret == 1
    pytester.runpytest(*RUN, *SAVE, *COMPARE, "--vram-accept-force").assert_outcomes(passed=4)
    pytester.runpytest(*RUN, *COMPARE).assert_outcomes(passed=4)


def test_a_value_that_is_neither_is_a_usage_error(pytester: pytest.Pytester) -> None:
    """One line with both words."""
    result = pytester.runpytest(*RUN, "--vram-new=ignore")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --vram-new must be fail or skip, got 'ignore'"])
