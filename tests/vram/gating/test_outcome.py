"""The one verdict of a gate, from how pytest ended, what was measured, and how that compares with the base."""

from __future__ import annotations

from typing import Any

import pytest

from vram.gating.outcome import Ended, outcome
from vram.summary import ChannelSummary, Check, Failure, MarkedSummary, RecordingSummary, RunSummary

MODES = ("baseline", "himap", "custom-tome")
OVER = Check("budget", "over", "1 B over", figure_bytes=2, limit_bytes=1, over_bytes=1)
WORSE = Check("base", "over", "peak 2 B, 1 B (100.00%) more than 1 B in run 0001")
NEW = Check("base", "new", "new: no run has measured it")


def measured(**verdicts: str | None) -> RunSummary:
    """A recording of each mode: stable unless a verdict is given; "missing" was not made."""
    named = {mode: verdicts.get(mode.replace("-", "_"), "stable") for mode in MODES}
    return RunSummary(recordings=[recording(name, verdict) for name, verdict in named.items() if verdict != "missing"])


def recording(name: str, verdict: str | None = "stable") -> RecordingSummary:
    checks = {"over limit": (OVER,), "regression": (WORSE,), "new": (NEW,)}.get(verdict or "", ())
    return RecordingSummary(name, laps=5, samples=2, verdict="stable" if checks else verdict, checks=checks)


def failed(*kinds: str) -> dict[str, Any]:
    return {"failures": [Failure(f"test_{kind}", "test.py", 1, kind, "why") for kind in kinds]}


@pytest.mark.parametrize(
    ("status", "verdicts", "code"),
    [
        (0, {}, 0),
        (0, {"himap": "plateau"}, 0),
        (0, {"himap": None}, 3),
        (0, {"custom_tome": "missing"}, 3),
        (0, {"himap": "undecided"}, 3),
        (1, {}, 1),
        (1, {"himap": "grows"}, 1),
        (1, {"himap": "undecided"}, 3),
        (1, {"himap": "undecided", "baseline": "grows"}, 1),
        (1, {"baseline": "out of memory"}, 1),
        (1, {"himap": "undecided", "baseline": "over limit"}, 1),
        (3, {}, 70),
        (4, {}, 2),
        (5, {}, 2),
        (137, {}, 70),
    ],
)
def test_exit_code(status: int, verdicts: dict[str, str | None], code: int) -> None:
    """pytest's exit and the verdicts give the promised code; a required recording without a decision is never fine."""
    assert outcome(Ended(status, measured(**verdicts), required=MODES))[0] == code


def test_a_required_name_is_decided_where_all_of_it_are() -> None:
    """A recording of a single lap, which has no verdict, is not hidden by a stable one of the same name."""
    run = RunSummary(recordings=[RecordingSummary("himap", laps=1, samples=2), recording("himap")])
    assert outcome(Ended(0, run, required=["himap"])) == (3, "inconclusive: no decision on himap")


@pytest.mark.parametrize(
    ("suite", "compared", "accepted", "code", "says"),
    [
        ({}, 0, False, 0, "no regression against the base (recorded), and the suite passed: nothing needs attention"),
        ({}, 1, False, 1, "a regression was found against the base (recorded)"),
        ({}, 2, False, 2, "nothing was compared"),
        ({}, 3, False, 3, "nothing to compare with; make a run of good code the base with ci/gate --vram-accept"),
        ({}, 70, False, 70, "vram compare itself failed"),
        ({"himap": "grows"}, 0, False, 1, "found by the suite: 1 of 3 needs attention: 1 grows, 2 stable"),
        ({"himap": "grows"}, 3, False, 1, "found by the suite"),
        ({"himap": "grows"}, 70, False, 1, "found by the suite"),
        ({"himap": "regression"}, 1, False, 1, "found against the base (recorded): 1 of 3 needs attention"),
        ({"himap": None}, 0, False, 3, "no decision on himap"),
        ({"himap": None}, 1, False, 1, "a regression was found against the base"),
        ({}, 1, True, 0, "accepted"),
        ({}, 3, True, 0, "accepted"),
        ({"himap": None}, 0, True, 3, "no decision on himap"),
        ({"himap": "grows"}, 0, True, 1, "found by the suite"),
        ({}, 2, True, 2, "nothing was compared"),
    ],
)
def test_a_finding_comes_before_what_is_open(
    suite: dict[str, str | None], compared: int, accepted: bool, code: int, says: str
) -> None:
    """Found comes before inconclusive, and nothing that was not compared is fine; the line says which."""
    run, status = measured(**suite), int(bool({"grows", "regression"} & {*suite.values()}))
    ended = Ended(status, run, compared, accepted=accepted, base="recorded", command="ci/gate")
    found, line = outcome(ended)
    assert found == code
    assert says in line
    assert "\n" not in line


@pytest.mark.parametrize(("new_fails", "accepted", "code"), [(False, False, 0), (True, False, 3), (True, True, 0)])
def test_something_new_or_missing_is_not_fine_where_it_fails(new_fails: bool, accepted: bool, code: int) -> None:
    """No regression, and a recording that is new or missing: inconclusive, unless it was accepted; and a test that
    failed although the run was accepted is not fine."""
    run = RunSummary(recordings=measured().recordings, **failed("NotRecorded"))
    assert outcome(Ended(1, run, 0, new_fails=new_fails, accepted=accepted, base="recorded"))[0] == 3
    ended = Ended(0, measured(), 0, absent=True, new_fails=new_fails, accepted=accepted, base="recorded")
    found, line = outcome(ended)
    assert found == code
    assert ("something is new or missing" in line) == (code == 3)


def test_a_budget_nobody_recorded_is_named() -> None:
    """Stable and within its budget are two things: the line claims the second only where there was one."""
    assert outcome(Ended(0, measured()))[1].endswith("no budget is recorded for baseline, himap, custom-tome")
    checked = RecordingSummary("one", laps=5, samples=2, verdict="stable", budget_bytes=1)
    line = "nothing needs attention: 1 stable; every peak is within its budget"
    assert outcome(Ended(0, RunSummary(recordings=[checked]))) == (0, line)


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        (failed("NotRecorded", "NotRecorded"), 3, "something is new or missing"),
        (failed("NotRecorded", "PeakExceeded"), 1, "found by the suite"),
        (failed("NotRecorded") | {"otherwise": ["test"]}, 1, "1 test failed for a reason that is not memory, and no"),
        ({"otherwise": ["test"], "failed_besides": 2}, 1, "3 tests failed for a reason that is not memory, and no"),
        (failed("MemoryGrowth") | {"failed_besides": 1}, 1, "by the suite: nothing needs attention: 3 stable; 1 test"),
        (failed("MemoryRegression"), 1, "found against the base (recorded)"),
        (failed("Undecided"), 3, "no decision on test_Undecided"),
        (failed("NotRecorded") | {"tests": [MarkedSummary("t", 1, 1, new="x", new_fails=True)]}, 3, "something is new"),
        ({"missing": ["gone"], "missing_fails": True}, 3, "something is new or missing"),
        ({}, 1, "the suite failed for a reason that is not memory: see above; of memory: nothing needs attention"),
    ],
)
def test_a_suite_that_failed_says_of_what(changes: dict[str, Any], code: int, says: str) -> None:
    """Tests that fail for another reason than memory do not pass the gate, and are not called a regression; what fails
    because it is new is no regression either."""
    run = RunSummary(recordings=measured().recordings, **changes)
    found, line = outcome(Ended(1, run, 0, new_fails=True, base="recorded"))
    assert found == code
    assert says in line


def test_a_run_that_measured_nothing_is_not_fine() -> None:
    """A suite without a test that measures passes no gate, also where it passed; nor does one without a report."""
    code, line = outcome(Ended(0))
    assert (code, line.partition(":")[0]) == (3, "inconclusive")
    assert "no test used the fixture vram" in line
    assert outcome(Ended(0, required=MODES))[0] == 3


def test_stopped_is_interrupted_only_where_somebody_did_it() -> None:
    """pytest ends with 2 for Ctrl-C, for what can't be collected, and for a stop after the first failure."""
    assert outcome(Ended(2, RunSummary(interrupted=True)))[0] == 130
    assert outcome(Ended(2, RunSummary(failed_besides=1))) == (
        2,
        "bad input: the tests could not be collected: see the errors above",
    )
    assert outcome(Ended(2, RunSummary(recordings=[recording("a", "grows")], **failed("MemoryGrowth"))))[0] == 1
    assert outcome(Ended(2, RunSummary(recordings=[recording("a")])))[0] != 0


@pytest.mark.parametrize(
    ("run", "code"),
    [
        (RunSummary(tests=[MarkedSummary("t", 2, 1)]), 1),
        (RunSummary(tests=[MarkedSummary("t", 2, 1, expected=True)]), 0),
        (RunSummary(tests=[MarkedSummary("t", 1, 1, regressions=("worse",))]), 1),
        (RunSummary(tests=[MarkedSummary("t", 1, 1, inconclusive="nothing was allocated")]), 3),
        (RunSummary(tests=[MarkedSummary("t", 1, 1)]), 0),
        (RunSummary(recordings=[RecordingSummary("a", laps=1, samples=1, channels={})]), 0),
        (RunSummary(recordings=[RecordingSummary("a", laps=5, verdict="grows", expected=True)]), 0),
    ],
)
def test_marked_tests_and_expected_failures(run: RunSummary, code: int) -> None:
    """A marked test decides as a recording does; what is expected to fail fails nothing."""
    assert outcome(Ended(0, run, 0, base="recorded"))[0] == code


def test_figures_that_say_nothing_are_named() -> None:
    """A recording whose base could not be compared, say: neither fine nor a regression."""
    check = Check("base", "inconclusive", "peak: not measured in this run")
    channel = ChannelSummary(exact=True, bytes=[[1]], before_bytes=0)
    one = RecordingSummary("a", laps=5, samples=1, verdict="stable", checks=(check,), channels={"requested": channel})
    assert outcome(Ended(0, RunSummary(recordings=[one]), 0, base="recorded")) == (
        3,
        "inconclusive: no decision on a",
    )
