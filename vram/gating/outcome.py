"""The one verdict of a gate: how pytest ended, what it measured, and how that compares with the base."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

from vram.errors import NotRecorded, Undecided
from vram.exit_codes import BAD_INPUT, FINE, INCONCLUSIVE, INTERRUPTED, OUR_FAULT, REGRESSION
from vram.summary import NEEDS_ATTENTION, NO_DECISION, RunSummary

DECIDED = ("stable", "plateau", "grows", "out of memory")  # verdicts on growth
# pytest's: 0 passed, 1 failed, 2 stopped, 3 internal error, 4 usage error, 5 no tests collected.
PASSED, FAILED, STOPPED, USAGE, NO_TESTS = 0, 1, 2, 4, 5
_OPEN = (NotRecorded.__name__, Undecided.__name__)  # failures that are no finding yet
_AGAINST_BASE = "MemoryRegression"


@dataclass(frozen=True)
class Ended:
    """How a suite ended. `status` is pytest's exit code, `run` what its report says.

    `compared` is the exit code of `vram compare` with `base`, None where nothing was compared; `absent`: something is
    new, or missing. `accepted`: the run is the base from now on. `required` recordings must have a verdict on growth.
    `command` is what the user called.
    """

    status: int
    run: RunSummary = field(default_factory=RunSummary)
    compared: int | None = None
    absent: bool = False
    new_fails: bool = False
    accepted: bool = False
    base: str = ""
    required: Sequence[str] = ()
    command: str = "vram gate"


def outcome(ended: Ended) -> tuple[int, str]:
    """(exit code, the verdict in one line). A regression comes before all that is open, and nothing open is fine."""
    for decide in (_not_run, _found, _undecided, _failed_otherwise, _not_compared, _not_decided):
        verdict = decide(ended)
        if verdict is not None:
            return verdict
    return FINE, _fine(ended)


def _not_run(ended: Ended) -> tuple[int, str] | None:
    """The verdict on a suite that did not come to its end."""
    status, run = ended.status, ended.run
    if run.interrupted:
        return INTERRUPTED, "interrupted"
    if status == USAGE:
        return BAD_INPUT, "bad input: nothing was measured"
    if status == NO_TESTS:
        return BAD_INPUT, "bad input: no test was collected, and nothing measured"
    if status == STOPPED and not (run.recordings or run.tests or run.failures or run.otherwise):
        return BAD_INPUT, "bad input: the tests could not be collected: see the errors above"
    if status not in (PASSED, FAILED, STOPPED):
        return OUR_FAULT, f"the suite itself failed: pytest {_ended_with(status)}"
    return None


def _ended_with(status: int) -> str:
    if status > 128:
        try:
            return f"was ended by {signal.Signals(status - 128).name}"
        except ValueError:
            pass
    return f"ended with {status}"


def _found(ended: Ended) -> tuple[int, str] | None:
    """The verdict where memory is at fault."""
    run = ended.run
    by_base = [one for one in run.recordings if one.outcome == "regression"]
    by_base_tests = [test for test in run.tests if test.outcome == "regression"]
    worse = [one for one in run.recordings if one.outcome in NEEDS_ATTENTION - {"undecided"}]
    kinds = {failure.kind for failure in run.failures} - {*_OPEN, _AGAINST_BASE}
    tests = [test for test in run.failed_tests if test.outcome != "new"]
    if kinds or len(worse) > len(by_base) or len(tests) > len(by_base_tests):
        return REGRESSION, f"a regression was found by the suite: {run.headline}{_besides(run)}"
    against_base = any(failure.kind == _AGAINST_BASE for failure in run.failures)
    if worse or tests or against_base or (ended.compared == REGRESSION and not ended.accepted):
        return REGRESSION, f"a regression was found against the base ({ended.base}): {run.headline}{_besides(run)}"
    return None


def _undecided(ended: Ended) -> tuple[int, str] | None:
    """The verdict where a required recording has no verdict on growth, or any is undecided."""
    verdicts: dict[str, set[str | None]] = {name: set() for name in ended.required}
    for one in ended.run.recordings:  # several may have one name
        verdicts.setdefault(one.name, set()).add(one.verdict)
    names = [name for name in ended.required if not verdicts[name] or not verdicts[name] <= {*DECIDED}]
    undecided = [one.name for one in ended.run.recordings if one.outcome == "undecided"]
    undecided = undecided or [failure.test for failure in ended.run.failures if failure.kind == Undecided.__name__]
    names += [name for name in undecided if name not in names]
    if names:
        return INCONCLUSIVE, f"inconclusive: no decision on {', '.join(names)}{_besides(ended.run)}"
    return None


def _failed_otherwise(ended: Ended) -> tuple[int, str] | None:
    """The verdict where tests failed and no figure of memory is at fault."""
    run = ended.run
    if _besides(run):
        return REGRESSION, f"{_besides(run)[2:]}, and no regression of memory was found: {run.headline}"
    if ended.status == PASSED or run.failures or (run.missing and run.missing_fails):
        return None
    return REGRESSION, f"the suite failed for a reason that is not memory: see above; of memory: {run.headline}"


def _not_compared(ended: Ended) -> tuple[int, str] | None:
    """The verdict where nothing could be compared, or was accepted, or something that must not be is new."""
    accept = f"{ended.command} --vram-accept"
    if ended.compared == BAD_INPUT:
        return BAD_INPUT, "nothing was compared: see above"
    if not (ended.run.recordings or ended.run.tests):
        return INCONCLUSIVE, "inconclusive: nothing was measured: no test used the fixture vram or one of its markers"
    if ended.accepted:
        return None
    if ended.compared == INCONCLUSIVE:
        return INCONCLUSIVE, f"inconclusive: nothing to compare with; make a run of good code the base with {accept}"
    if ended.compared not in (None, FINE):
        return OUR_FAULT, "vram compare itself failed"
    if ended.status != PASSED or (ended.absent and ended.new_fails):
        return INCONCLUSIVE, f"inconclusive: something is new or missing (see above); if it is meant, {accept}"
    return None


def _not_decided(ended: Ended) -> tuple[int, str] | None:
    """The verdict where the figures of some recording or test say nothing."""
    open_ = NO_DECISION - {"new"}
    names = [one.name for one in ended.run.recordings if one.outcome in open_]
    names += [test.test for test in ended.run.tests if test.outcome in open_]
    begin = "inconclusive, though accepted" if ended.accepted else "inconclusive"
    if names:
        return INCONCLUSIVE, f"{begin}: no decision on {', '.join(names)}"
    return None if ended.status == PASSED else (INCONCLUSIVE, f"{begin}: see the failures above")


def _fine(ended: Ended) -> str:
    run = ended.run
    if ended.accepted:
        return "accepted: this run is the recorded base from now on" if ended.base else f"accepted: {run.headline}"
    without = [one.name for one in run.recordings if one.budget_bytes is None]
    budgets = f"no budget is recorded for {', '.join(without)}" if without else "every peak is within its budget"
    if not ended.base:
        return f"{run.headline}; {budgets}"
    return f"no regression against the base ({ended.base}), and the suite passed: {run.headline}"


def _besides(run: RunSummary) -> str:
    """ "; 2 tests failed for a reason that is not memory", or "" where none did."""
    count = len(run.otherwise) + run.failed_besides
    tests = "1 test" if count == 1 else f"{count} tests"
    return f"; {tests} failed for a reason that is not memory" if count else ""
