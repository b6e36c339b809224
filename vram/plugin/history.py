"""Puts memory figures into the runs that pytest-benchmark saves, and compares tests with them: see `vram.history`."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from vram.escaping import shown
from vram.extras import remedy
from vram.files import is_folder
from vram.plugin.measuring import MARKED, Measuring
from vram.plugin.options import ini, option
from vram.plugin.outcomes import raise_in

if TYPE_CHECKING:
    from vram.history.entries import Entry
    from vram.history.gate import Finding, Gate, Gatherer
    from vram.history.keys import Key
    from vram.history.saver import Saver


COMPARED = pytest.StashKey[set["Key"]]()  # what a try of a test made and was compared with its base


class Keeping:
    """Gathers each test's entries, holds it to its base, and has the run saved."""

    def __init__(self, config: pytest.Config, measuring: Measuring) -> None:
        self._config = config
        self._measuring = measuring
        self._gatherer: Gatherer | None = None
        # Entries by test and worker: each report has all that its test measured so far, of several tries in the last.
        self._measured: dict[tuple[str, Any], list[dict[str, Any]]] = {}
        self._seconds: dict[str, float] = {}
        self._saver: Saver | None = None
        self._gate = _gate(config)
        self._passed: set[str] = set()
        measuring.keeps = self._gate is not None or _saves(config)
        if self._gate is not None and config.getoption("--vram-gate"):
            measuring.saved = {
                "storage": config.getoption("--benchmark-storage"),
                "run": str(config.getoption("--benchmark-save")),
                "base": self._gate.base,
                "criteria": list(self._gate.criteria),
                "accepted": bool(option(config, "accept")),
            }

    @property
    def _entries(self) -> list[dict[str, Any]]:
        """Everything that the session's tests measured."""
        return [entry for entries in self._measured.values() for entry in entries]

    def _gather(self, item: pytest.Item) -> list[Entry]:
        """The entries of everything that the test measured so far."""
        marked = item.stash.get(MARKED, None)
        if marked is None and not self._measuring.summaries:
            return []
        gatherer = self._gathering()
        gatherer.gather(item.nodeid, self._measuring.summaries, self._measuring.retried)
        if marked is None and not gatherer.has(item.nodeid):
            return []
        body = None if marked is None else (marked, self._measuring.environment(of_body=True))
        accepted = bool(option(self._config, "accept"))
        return gatherer.entries(item.nodeid, self._measuring.environment(), body, accepted=accepted)

    def _gathering(self) -> Gatherer:
        if self._gatherer is None:
            from vram.history.gate import Gatherer

            self._gatherer = Gatherer()
        return self._gatherer

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """A test begins, perhaps anew."""
        item.stash[COMPARED] = set()
        if self._gatherer is not None:
            self._gatherer.begin(item.nodeid)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Compare a test that passed with its base."""
        __tracebackhide__ = True
        result = yield
        self._hold(item)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Compare what fixtures made after their `yield`."""
        __tracebackhide__ = True
        result = yield
        self._hold(item)
        return result

    def _hold(self, item: pytest.Item) -> None:
        """Fail the test where something that it made since it was last compared is worse than its base, or new."""
        __tracebackhide__ = True
        findings = self._findings(item)
        if findings:
            from vram.history.gate import error_of

            self._note(item, findings)
            error = error_of(findings, self._lines(item, findings))
            if error is not None:
                raise_in(item, error)

    def _findings(self, item: pytest.Item) -> Sequence[Finding]:
        """Reasons not to pass, among what the test made since this was last called."""
        if self._gate is None or option(self._config, "accept"):
            return ()
        compared = item.stash.setdefault(COMPARED, set())  # the setup of another plugin may end a test before ours
        entries = [entry for entry in self._gather(item) if entry.key not in compared]
        compared |= {entry.key for entry in entries}
        return self._gate.findings(entries) if entries else ()

    def _note(self, item: pytest.Item, findings: Sequence[Finding], *, failed: bool = False) -> None:
        """Findings become checks of the recordings, and regressions of the marked test, that they are about. Where the
        test `failed`, what needs attention already has its reason."""
        if not findings:
            return
        from vram.history.entries import of_marked
        from vram.summary import Check

        vram, marked = self._measuring.vram, item.stash.get(MARKED, None)
        made = {} if vram is None else self._gathering().by_index(item.nodeid, self._measuring.environment())
        for finding in findings:
            prefix = "new: " if finding.status == "new" else ""
            for index, entry in made.items():
                if failed and self._measuring.summaries[index].needs_attention:
                    continue
                if entry.key == finding.key and vram is not None:
                    for text in finding.texts:
                        vram.add_check(index, Check("base", finding.status, prefix + text), finding.lines)
            if marked is not None and not (failed and marked.over):
                entry = of_marked(marked, self._measuring.environment(of_body=True))
                if entry.key == finding.key:
                    item.stash[MARKED] = replace(marked, **_noted(finding))

    def _lines(self, item: pytest.Item, findings: Sequence[Finding]) -> list[str]:
        """The lines of code that the peaks over their base are made of: of recordings, and of the test's body."""
        if not findings:
            return []
        over = [finding.key for finding in findings if finding.status == "over"]
        marked = item.stash.get(MARKED, None)
        lines = [f"  {line}" for line in (marked.cause_lines if marked is not None and marked.regressions else ())]
        if not over or self._measuring.vram is None:
            return lines
        made = self._gathering().by_index(item.nodeid, self._measuring.environment())
        worse = [index for index, entry in made.items() if entry.key in over]
        summaries = [self._measuring.summaries[index] for index in worse]
        return lines + [f"  {line}" for one in summaries for line in one.over_base_lines]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, Any]:
        """Entries of the test go along with its report, from a worker of pytest-xdist too. One that failed or was
        skipped for its own reasons ends as it did; that it also needs more than its base is said."""
        if call.excinfo is not None:
            over = [finding for finding in self._findings(item) if finding.status == "over"]
            self._note(item, over, failed=True)
        report = yield
        entries = self._gather(item)
        if entries:
            from vram.history.entries import to_json

            vars(report)["vram_history"] = [to_json(entry) for entry in entries]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gather what the tests of this process, or of the workers, measured."""
        if hasattr(report, "vram_history"):
            self._measured[report.nodeid, getattr(report, "node", None)] = report.vram_history
        if report.when == "call":
            self._seconds[report.nodeid] = report.duration
            (self._passed.add if report.passed else self._passed.discard)(report.nodeid)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, Any, Any]:
        """Before pytest-benchmark saves the run, put the figures into it. A recording that is missing may fail it."""
        self._find_missing(session)
        benchmarks = self._config.pluginmanager.getplugin("pytest-benchmark")
        if (
            benchmarks is not None
            and self._config.getoption("--vram-gate")
            and not (self._entries or benchmarks.benchmarks)
        ):
            benchmarks.save = None  # it would warn, which is an error in projects that make warnings errors
        if benchmarks is None or not self._entries or hasattr(self._config, "workerinput"):
            return (yield)
        from vram.history.entries import from_json
        from vram.history.saver import Saver

        self._saver = Saver(benchmarks)
        if self._saver.saves:
            self._saver.put([from_json(entry) for entry in self._entries], self._seconds)
        return (yield)

    @pytest.hookimpl(wrapper=True, optionalhook=True)
    def pytest_benchmark_group_stats(self, benchmarks: list[Any]) -> Generator[None, Any, Any]:
        """Leave out of pytest-benchmark's tables what is no benchmark of its user."""
        if self._saver is not None:
            benchmarks[:] = self._saver.without_ours(benchmarks)
        return (yield)

    def _find_missing(self, session: pytest.Session) -> None:
        """Recordings of the base that tests which passed did not make this time."""
        judges = self._gate is not None and not (option(self._config, "accept") or self._measuring.off())
        if self._gate is None or not judges or hasattr(self._config, "workerinput"):
            return
        from vram.history.entries import from_json

        entries = [from_json(entry) for entry in self._entries]
        self._measuring.missing = self._gate.missing(entries, self._passed)
        if self._measuring.missing and self._measuring.new_fails and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what could not be saved or read."""
        problem = self._saver.problem if self._saver is not None else ""
        for line in (problem, *(self._gate.skipped if self._gate is not None else ())):
            if line:
                terminalreporter.write_line(shown(f"vram: {line}"), red=True)


def _saves(config: pytest.Config) -> bool:
    """Whether pytest-benchmark saves this run."""
    return any(config.getoption(f"benchmark_{name}", None) for name in ("save", "autosave", "json"))


def _noted(finding: Finding) -> dict[str, Any]:
    """Words of a finding on a marked test, as its summary has it."""
    if finding.status == "over":
        return {"regressions": tuple(finding.texts), "base_lines": tuple(finding.lines)}
    return {finding.status: "; ".join(finding.texts)}


def _gate(config: pytest.Config) -> Gate | None:
    """The gate of --vram-compare; None without it. Raises a usage error for a run that can't be read."""
    base = option(config, "compare")
    criteria = config.getoption("--vram-compare-fail")
    if not base and not criteria:  # a file's criteria alone switch nothing on
        return None
    from vram.history import store
    from vram.history.gate import Gate

    if not store.installed():
        raise pytest.UsageError(f"--vram-compare needs pytest-benchmark: {remedy('history')}")
    base = base or "recorded"
    if "::" in base or base.endswith(".py") or is_folder(base):
        raise pytest.UsageError(f"--vram-compare must name a run, or stand behind the tests, got {base!r}")
    try:
        gate = Gate(config.getoption("--benchmark-storage", None), base, criteria or ini(config, "compare_fail"))
        gate.read()
    except ValueError as error:
        raise pytest.UsageError(shown(f"--vram-compare: {error}")) from None
    return gate
