"""Tests in processes of their own (pytest-forked): what they measure goes along with their last report."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from vram.plugin.measuring import MARKED, Measuring, forks, measures

if TYPE_CHECKING:
    from vram.plugin.reporting import Reporting
    from vram.summary import RecordingSummary


class Forked:
    """Hands over what a forked process measured, merges it in the process of the session, and says what is lost."""

    def __init__(self, config: pytest.Config, measuring: Measuring, reporting: Reporting) -> None:
        self._config = config
        self._measuring = measuring
        self._reporting = reporting
        self._inherited: tuple[Sequence[RecordingSummary], int] | None = None  # summaries, and how many were accepted
        self._waited_for: set[str] = set()  # ids of forked tests that measure and have not handed over yet
        self._lost: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self) -> None:
        """The process of one test begins, with what the session's has measured so far."""
        vram = self._measuring.vram
        if self._measuring.forked and self._inherited is None:
            self._inherited = ([], 0) if vram is None else (list(vram.summaries), len(vram.accepted))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """With the report of the teardown, which is the last, goes all that the process measured."""
        report = yield
        if self._inherited is not None and call.when == "teardown":
            # As text: pytest-forked takes plain values alone.
            vars(report)["vram_forked"] = json.dumps(self._measured(item, *self._inherited))
        return report

    def _measured(self, item: pytest.Item, summaries: Sequence[RecordingSummary], accepted: int) -> dict[str, Any]:
        vram = self._measuring.vram
        known = dict(enumerate(summaries))
        made = {} if vram is None else {i: one for i, one in enumerate(vram.summaries) if one is not known.get(i)}
        environments = [] if vram is None or not made else [vram.environment]
        if MARKED in item.stash:
            environments.append(self._measuring.environment(of_body=True))
        return {
            "changed": {index: one.to_json() for index, one in made.items() if index in known},
            "recordings": [one.to_json() for index, one in made.items() if index not in known],
            "environments": environments,
            "accepted": [] if vram is None else [vars(one) for one in vram.accepted[accepted:]],
        }

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember which tests will measure in a process of their own, and import what each of these would."""
        if self._measuring.uses:
            self._waited_for = {item.nodeid for item in session.items if forks(item) and measures(item)}
        if self._waited_for:
            import vram.plugin.body
            import vram.session  # noqa: F401
            from vram.replaying.measurement import measure

            with measure("cpu"):
                pass  # the first operation that is followed imports much of torch; no CUDA

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Merge what a forked process measured; a worker of pytest-xdist has done so for its own."""
        text = getattr(report, "vram_forked", None)
        if text is None or hasattr(report, "node"):
            return
        from vram.summary.reader import recording_from_json

        self._waited_for.discard(report.nodeid)
        data = json.loads(text)
        for index, one in data["changed"].items():
            assert self._measuring.vram is not None
            self._measuring.vram.summaries[int(index)] = recording_from_json(one)
        self._reporting.merge(data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """The process of a test has ended: it may have crashed."""
        if nodeid in self._waited_for:
            self._lost.append(nodeid)

    def pytest_sessionfinish(self) -> None:
        """A worker of pytest-xdist says to its controller what is lost."""
        workeroutput = getattr(self._config, "workeroutput", None)
        if workeroutput is not None:
            workeroutput["vram_lost"] = self._lost

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what is lost in a worker of pytest-xdist."""
        self._lost += getattr(node, "workeroutput", {}).get("vram_lost", ())

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what is lost."""
        for test in self._lost:
            line = f"vram: {test}: its process ended without a report, and what it measured is lost"
            terminalreporter.write_line(line, red=True)
