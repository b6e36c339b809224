"""The pytest plugin: options, the fixture `vram`, outcomes and the summary. The only module here that knows pytest."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vram.errors import Inconclusive, Undecided

if TYPE_CHECKING:
    from vram.session import VramSession

# option, how it is parsed, help. Each has an ini twin of the same name; a default of None lets the ini file speak.
_OPTIONS = (
    ("device", "DEVICE", "where to measure: auto, cpu, cuda or cuda:INDEX (default auto: CUDA where there is one)"),
    ("laps", "N", "passes over the samples before the first look, warm-up included (default 5)"),
    ("samples", "N", "samples a lap, for suites that let this choose"),
    ("report", "PATH", "write what was measured to this JSON file"),
    ("undecided", "fail|skip", "what an undecided channel does to its test (default fail)"),
)
_FLAGS = (
    ("accept", "rewrite the budgets that are checked to what is measured"),
    ("disable", "measure nothing; tests that use the fixture vram are skipped"),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and their ini twins."""
    group = parser.getgroup("vram", "GPU-memory regression tests")
    for name, metavar, text in _OPTIONS:
        group.addoption(f"--vram-{name}", metavar=metavar, default=None, help=text)
        parser.addini(f"vram_{name}", text, default=None)
    for name, text in _FLAGS:
        group.addoption(f"--vram-{name}", action="store_true", default=None, help=text)
        parser.addini(f"vram_{name}", text, type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse values that cannot be read before anything is collected."""
    for name in ("laps", "samples"):
        _whole(config, name)
    undecided = _option(config, "undecided")
    if undecided not in (None, "", "fail", "skip"):
        raise pytest.UsageError(f"--vram-undecided must be fail or skip, got {undecided!r}")
    config.pluginmanager.register(_Session(config), "vram-session")


def _option(config: pytest.Config, name: str) -> Any:
    given = config.getoption(f"--vram-{name}")
    return config.getini(f"vram_{name}") if given is None else given


def _whole(config: pytest.Config, name: str) -> int | None:
    given = _option(config, name)
    if given in (None, ""):
        return None
    if not str(given).isdigit() or int(given) < 1:
        raise pytest.UsageError(f"--vram-{name} must be a whole number of at least 1, got {given!r}")
    return int(given)


@pytest.fixture(scope="session")
def vram(request: pytest.FixtureRequest) -> VramSession:
    """Replay samples, judge growth and peaks: see `vram.session.VramSession`."""
    plugin: _Session = request.config.pluginmanager.getplugin("vram-session")
    return plugin.start()


class _Session:
    """One pytest session's measuring; holds the fixture's object once somebody has asked for it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._vram: VramSession | None = None
        self._modes: list[dict[str, Any]] = []  # of xdist's workers
        self._environment: dict[str, object] = {}

    def start(self) -> VramSession:
        if self._vram is None:
            if _option(self._config, "disable"):
                pytest.skip("disabled by --vram-disable")
            if importlib.util.find_spec("torch") is None:
                pytest.skip("vram measures PyTorch, and torch is not installed")
            from vram.meters import default_meter
            from vram.session import SessionOptions, VramSession

            options = SessionOptions(
                device=_option(self._config, "device") or "auto",
                laps=_whole(self._config, "laps"),
                samples=_whole(self._config, "samples"),
                accept=bool(_option(self._config, "accept")),
            )
            try:
                default_meter(options.device)
            except ValueError as error:
                pytest.exit(f"--vram-device: {error}", returncode=pytest.ExitCode.USAGE_ERROR)
            self._vram = VramSession(options)
        return self._vram

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, Any]:
        """Inconclusive is a skip with its reason; so is Undecided where the session says so."""
        report = yield
        error = call.excinfo.value if call.excinfo is not None else None
        soft = isinstance(error, Undecided) and _option(self._config, "undecided") == "skip"
        if report.failed and (soft or isinstance(error, Inconclusive)):
            path, line, _ = report.location
            report.outcome = "skipped"
            kind = "undecided" if soft else "inconclusive"
            report.longrepr = (path, (line or 0) + 1, f"Skipped: {kind}: {error}")
        return report

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the report; a worker of pytest-xdist hands its figures to the controller instead."""
        if self._vram is not None:
            self._modes += self._vram.summaries
            self._environment |= self._vram.environment
        workeroutput = getattr(self._config, "workeroutput", None)
        if workeroutput is not None:
            workeroutput["vram"] = {"modes": self._modes, "environment": self._environment}
            return
        path = _option(self._config, "report")
        if path and self._modes:
            from vram.report import write_report

            write_report(self._config.invocation_params.dir / path, self._environment, self._modes)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Merge what a worker of pytest-xdist measured."""
        measured = getattr(node, "workeroutput", {}).get("vram")
        if measured:
            self._modes += measured["modes"]
            self._environment |= measured["environment"]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """One row a recording, what was measured with, and what was not measured and why."""
        if not self._modes:
            return
        from vram.report import absences, table

        terminalreporter.section("vram")
        source = self._environment.get("source", "")
        terminalreporter.write_line(f"measured: {source}, torch {self._environment.get('torch')}")
        if str(source).startswith("CPU"):
            terminalreporter.write_line("not measured on a GPU: figures are of the same tensors on the CPU")
        for line in (*table(self._modes), *absences(self._modes)):
            terminalreporter.write_line(line)
        report = _option(self._config, "report")
        if report:
            terminalreporter.write_line(f"report: {Path(report)}")
