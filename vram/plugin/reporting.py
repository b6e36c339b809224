"""Everything that leaves a pytest session: from its tests, its workers and its recordings to every surface."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vram.errors import NotRecorded
from vram.escaping import shown
from vram.plugin.measuring import MARKED, USED, Measuring, measures
from vram.plugin.options import option
from vram.plugin.outcomes import explain_missing_gpu, is_expected, is_ours, soften
from vram.text import BAD, GOOD, OPEN, terminal_columns

if TYPE_CHECKING:
    from vram.budgets.accepted import Accepted
    from vram.summary import RecordingSummary, RunSummary


class Reporting:
    """Gathers what tests measured, from the workers of pytest-xdist too, and hands it to the surfaces."""

    def __init__(self, config: pytest.Config, measuring: Measuring) -> None:
        self._config = config
        self._measuring = measuring
        self._recordings: list[RecordingSummary] = []
        self._environments: list[Mapping[str, object]] = []
        self._accepted: list[Accepted] = []
        # The last try of each test, under its id.
        self._tests: dict[str, Any] = {}
        self._failures: dict[str, Any] = {}
        self._otherwise: dict[str, None] = {}
        self._lines: list[tuple[str, bool]] = []  # that end the summary, and whether they are problems
        self._besides: dict[str, None] = {}  # what failed and measures nothing: tests, and modules to collect
        self._interrupted = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, Any]:
        """Inconclusive is a skip with its reason; so is Undecided where the session says so. Figures go along."""
        report = yield
        error = call.excinfo.value if call.excinfo is not None else None
        soften(
            report,
            error,
            undecided_skips=option(self._config, "undecided") == "skip",
            new_fails=self._measuring.new_fails,
        )
        vram = self._measuring.vram
        if vram is not None and vram.device.startswith("simulated"):
            explain_missing_gpu(report, error)
        data: dict[str, Any] = {}
        if report.failed and (is_ours(error) or measures(item)):
            data["failed"] = (type(error).__name__, str(error)) if is_ours(error) else None
        touched = vram.touched() if vram is not None else []
        if vram is not None and is_ours(error) and (report.failed or is_expected(report)):
            vram.settle(touched, expected=is_expected(report), new=isinstance(error, NotRecorded))
        self._attach(item, report, data, touched)
        if data:  # attributes of a report travel from a worker of pytest-xdist to its controller
            vars(report)["vram"] = data
        return report

    def _attach(self, item: pytest.Item, report: pytest.TestReport, data: dict[str, Any], touched: list[int]) -> None:
        """Figures go along with the report, and as properties of the test, which pytest's JUnit report takes up."""
        marked = item.stash.get(MARKED, None) if report.when == "call" else None
        if marked is None and not touched:
            return
        from dataclasses import replace

        from vram.report.junit import properties

        if marked is not None:
            as_new = bool(data.get("failed")) and data["failed"][0] == NotRecorded.__name__
            marked = item.stash[MARKED] = replace(marked, expected=is_expected(report), new_fails=as_new)
            data["marked"] = marked.to_json()
        kept: dict[str, object] = dict(item.user_properties)
        used = item.stash.setdefault(USED, {})  # in an earlier phase too: several may have one name
        used |= dict.fromkeys(touched)
        kept |= properties([self._measuring.summaries[index] for index in used], marked)
        item.user_properties[:] = kept.items()
        report.user_properties = list(item.user_properties)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gather what the tests of this process, or of the workers, measured."""
        data = getattr(report, "vram", {})
        if report.when != "teardown":
            self._failures.pop(report.nodeid, None)
            self._otherwise.pop(report.nodeid, None)
            self._besides.pop(report.nodeid, None)
        if report.failed and "failed" not in data:
            self._besides[report.nodeid] = None
        if "marked" in data:
            from vram.summary.reader import marked_from_json

            self._tests[report.nodeid] = marked_from_json(data["marked"])
        if data.get("failed"):
            from vram.summary import Failure

            path, line, _ = report.location
            self._failures[report.nodeid] = Failure(report.nodeid, path, (line or 0) + 1, *data["failed"])
        elif "failed" in data:
            self._otherwise[report.nodeid] = None

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count what could not be collected."""
        if report.failed:
            self._besides[report.nodeid] = None

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Somebody ended the session. pytest itself ends one by a subclass (`--stepwise`) or by `pytest.exit`."""
        self._interrupted = excinfo.type is KeyboardInterrupt

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Merge what a worker of pytest-xdist measured."""
        data = getattr(node, "workeroutput", {}).get("vram")
        if data:
            self.merge(data)

    def merge(self, data: Mapping[str, Any]) -> None:
        """Take over recordings, environments and accepted budgets of another process, as JSON has them."""
        from vram.budgets.accepted import Accepted
        from vram.summary.reader import recording_from_json

        self._recordings += map(recording_from_json, data["recordings"])
        self._environments += data["environments"]
        self._accepted += [Accepted(**accepted) for accepted in data["accepted"]]

    def pytest_sessionfinish(self) -> None:
        """Write every file; a worker of pytest-xdist hands its figures to the controller instead."""
        vram = self._measuring.vram
        if vram is not None:
            self._accepted += vram.accepted
        if vram is not None and vram.summaries:
            self._recordings += [one for index, one in enumerate(vram.summaries) if index not in vram.retried]
            self._environments.append(vram.environment)
        elif self._tests and self._measuring.chosen is not None:
            self._environments.append(self._measuring.environment(of_body=True))
        workeroutput = getattr(self._config, "workeroutput", None)
        if workeroutput is not None:
            workeroutput["vram"] = {
                "recordings": [one.to_json() for one in self._recordings],
                "environments": self._environments,
                "accepted": [vars(one) for one in self._accepted],
            }
            return
        if self._accepted:
            from vram.budgets.accepted import reconciled

            self._accepted = reconciled(self._accepted)
        if self._measured or self._config.getoption("--vram-gate"):
            self._write_files(self.run())

    @property
    def _measured(self) -> bool:
        """True where there is anything of memory to report."""
        return bool(self._recordings or self._tests or self._measuring.missing)

    def _write_files(self, run: RunSummary) -> None:
        """Write each file, whatever became of the others."""
        path = option(self._config, "report")
        if path:
            self._write("report", lambda: _write_report(self._config.invocation_params.dir / path, run))
            self._lines += [] if self._lines else [(f"report: {Path(path)}", False)]
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if summary:
            self._write("job summary", lambda: _append_summary(Path(summary), run))

    def _write(self, what: str, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # whatever it is, tests were judged and other files can be written
            self._lines.append((f"{what} not written: {error}", True))

    def _paint(self, text: str, tone: str) -> str:
        """`text` in the colour of its tone, where pytest writes colours."""
        return str(self._config.get_terminal_writer().markup(text, **_COLOURS[tone])) if tone else text

    def run(self) -> RunSummary:
        """The session so far."""
        from vram.summary import RunSummary, merged_environment

        return RunSummary(
            environment=merged_environment(self._environments),
            recordings=self._recordings,
            tests=list(self._tests.values()),
            failures=list(self._failures.values()),
            otherwise=list(self._otherwise),
            missing=self._measuring.missing,
            missing_fails=self._measuring.new_fails,
            failed_besides=len(self._besides),
            interrupted=self._interrupted,
            saved=self._measuring.saved,
        )

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The run as the terminal shows it; beside the code where GitHub runs it; what was accepted."""
        write = terminalreporter.write_line
        missing = self._measuring.missing if self._measuring.new_fails else ()
        if (self._failures or missing) and os.environ.get("GITHUB_ACTIONS") == "true":
            from vram.report.github import error_commands

            root = self._config.rootpath
            workspace = Path(os.environ.get("GITHUB_WORKSPACE") or root)
            for line in error_commands(list(self._failures.values()), root, workspace, missing):
                write(line)
        if not self._measured and not self._accepted:
            return
        terminalreporter.section("vram")
        width = _columns(terminalreporter)
        if self._measured:  # else there are budgets of figures that others measured
            from vram.report.terminal import run_lines

            for line in run_lines(self.run(), width, self._paint):
                write(line)
        if self._accepted:
            from vram.budgets.accepted import diff, problems

            for line in diff(self._accepted, self._config.rootpath, width):
                write(line)
            for line in problems(self._accepted, self._config.rootpath):
                write(shown(line), red=True)
        for line, problem in self._lines:
            write(shown(line), red=problem)


_COLOURS = {BAD: {"red": True}, OPEN: {"yellow": True}, GOOD: {"green": True}}


def _columns(reporter: Any) -> int:
    """How wide the terminal is; 0 where nobody says so."""
    return terminal_columns(bool(getattr(reporter, "isatty", False)))


def _write_report(path: Path, run: RunSummary) -> None:
    from vram.report.json_file import write_report

    write_report(path, run)


def _append_summary(path: Path, run: RunSummary) -> None:
    from vram.report.github import job_summary

    with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(job_summary(run))
