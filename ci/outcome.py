"""The exit code of the memory suite: pytest's own, refined by the outcomes in the report."""

from __future__ import annotations

import sys
from pathlib import Path

from llava.modes import MODES
from vram.errors import NotRecorded
from vram.exit_codes import BAD_INPUT, FINE, INCONCLUSIVE, INTERRUPTED, OUR_FAULT, REGRESSION
from vram.summary import RunSummary
from vram.summary.reader import read_run

DECIDED = ("stable", "plateau", "grows", "out of memory")  # verdicts on growth
REGRESSED = ("grows", "out of memory", "over limit", "regression")
# pytest's: 0 passed, 1 failed, 2 interrupted, 3 internal error, 4 usage error, 5 no tests collected.
PASSED, FAILED, STOPPED, USAGE = 0, 1, 2, 4


def outcome(status: int, report: Path) -> tuple[int, str]:
    """(exit code, one line to print or nothing) for pytest's exit `status` and the JSON it wrote."""
    if status == USAGE:
        return BAD_INPUT, ""
    if status == STOPPED:
        return INTERRUPTED, "interrupted"
    if status not in (PASSED, FAILED):
        return OUR_FAULT, f"the suite itself failed: pytest ended with {status}"
    run = read_run(report) if report.is_file() else RunSummary()
    recordings, failures = run.recordings, [*(failure.kind for failure in run.failures), *run.otherwise]
    verdicts = {one.name: one.verdict for one in recordings}
    undecided = [mode for mode in MODES if verdicts.get(mode) not in DECIDED]
    regressed = any(one.outcome in REGRESSED for one in recordings)
    unbudgeted = [one.name for one in recordings if one.budget_bytes is None]
    if status == FAILED and not regressed and not undecided and failures and set(failures) == {NotRecorded.__name__}:
        return (
            INCONCLUSIVE,
            "inconclusive: something has no budget yet: see the failures above",
        )
    if status == FAILED and (regressed or not undecided):
        return REGRESSION, "a regression was found: see the failures above"
    if undecided:
        return INCONCLUSIVE, f"inconclusive: no decision on {', '.join(undecided)}"
    peaks = f"no budget is recorded for {', '.join(unbudgeted)}" if unbudgeted else "every peak is within its budget"
    return FINE, f"memory is stable in every mode; {peaks}"


if __name__ == "__main__":
    try:
        code, line = outcome(int(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:  # which Python would end with 1: a regression
        code, line = OUR_FAULT, f"a fault of its own: {type(error).__name__}: {error}"
    if line:
        print(f"ci/memory: {line}")
    sys.exit(code)
