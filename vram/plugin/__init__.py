"""The pytest plugin: options, the fixture `vram`, outcomes and the summary. The only module here that knows pytest."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import os
import sys
import types
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vram.cards import find_card
from vram.errors import Inconclusive, Undecided
from vram.plugin.markers import HELP, LEAK_FREE, LIMIT, judge, wanted

if TYPE_CHECKING:
    from vram.budgets.accepted import Accepted
    from vram.history.gate import Saver
    from vram.plugin.markers import Wanted
    from vram.session import VramSession

# option, how it is parsed, help. Each has an ini twin of the same name; a default of None lets the ini file speak.
_OPTIONS = (
    (
        "device",
        "DEVICE",
        "where to measure: auto, cpu, cuda, cuda:INDEX or simulated (default auto: CUDA if there is one)",
    ),
    ("card", "CARD", "a GPU, or a size as 24GiB: to forecast for; with --vram-device simulated, to simulate"),
    ("laps", "N", "passes over the samples before the first look, warm-up included (default 5)"),
    ("samples", "N", "samples a lap, for suites that let this choose"),
    ("report", "PATH", "write what was measured to this JSON file"),
    ("undecided", "fail|skip", "what an undecided channel does to its test (default fail)"),
)
_FLAGS = (
    ("accept", "rewrite the budgets that are checked to what is measured"),
    ("breakdown", "trace each recording's highest sample once more: the report says what its peak is made of, by line"),
    ("disable", "measure nothing; tests that use the fixture vram are skipped"),
)
_GATES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    (
        "compare",
        "RUN",
        "fail tests that need more than in this saved run (default recorded: of each the newest accepted run, "
        "else the first)",
        {"nargs": "?", "const": "recorded"},
    ),
    (
        "compare-fail",
        "CRITERION",
        "what --vram-compare fails, as in peak:2%%, growth:0, himap/peak:1MiB (default: every byte; may be repeated)",
        {"action": "append"},
    ),
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
    for name, metavar, text, how in _GATES:
        group.addoption(f"--vram-{name}", metavar=metavar, default=None, help=text, **how)
    # No ini twin: a file that always forces it would force it in CI.
    group.addoption("--vram-accept-force", action="store_true", default=False, help="--vram-accept, in CI too")
    parser.addini("vram_compare", _GATES[0][2], default=None)
    parser.addini("vram_compare_fail", _GATES[1][2], type="args", default=[])


def pytest_configure(config: pytest.Config) -> None:
    """Refuse values that cannot be read before anything is collected."""
    for name in ("laps", "samples"):
        _whole(config, name)
    if _option(config, "card"):
        try:
            find_card(_option(config, "card"))
        except ValueError as error:
            raise pytest.UsageError(f"--vram-card: {error}") from None
    undecided = _option(config, "undecided")
    if undecided not in (None, "", "fail", "skip"):
        raise pytest.UsageError(f"--vram-undecided must be fail or skip, got {undecided!r}")
    if config.getoption("--vram-accept-force"):
        config.option.vram_accept = True
    elif _option(config, "accept") and os.environ.get("CI", "").lower() not in ("", "0", "false"):
        raise pytest.UsageError(
            f"--vram-accept: CI={os.environ['CI']} is set, and nobody reviews a budget that CI accepts; run it where "
            "the change is committed, or force it with --vram-accept-force"
        )
    for text in HELP:
        config.addinivalue_line("markers", text)
    measured = _Session(config)
    config.pluginmanager.register(measured, "vram-session")
    config.pluginmanager.register(_History(config, measured), "vram-history")


def _option(config: pytest.Config, name: str) -> Any:
    given = config.getoption(f"--vram-{name}")
    return config.getini(f"vram_{name}") if given is None else given


def _whole(config: pytest.Config, name: str) -> int | None:
    given = _option(config, name)
    if given in (None, ""):
        return None
    if not str(given).isdecimal() or int(given) < 1:
        raise pytest.UsageError(f"--vram-{name} must be a whole number of at least 1, got {given!r}")
    return int(given)


@pytest.fixture(scope="session")
def vram(request: pytest.FixtureRequest) -> VramSession:
    """Replay samples, judge growth and peaks: see `vram.session.VramSession`."""
    plugin: _Session = request.config.pluginmanager.getplugin("vram-session")
    return plugin.start()


_FIGURES = pytest.StashKey[dict[str, Any]]()  # of a marked test's body, until they are reported

# What a torch without CUDA says, one without a driver, and one without a GPU.
_NO_GPU = ("Torch not compiled with CUDA enabled", "Found no NVIDIA driver", "No CUDA GPUs are available")
_OUTSIDE = (
    "The simulated card is there inside `with vram.on_device():` and in the steps of `vram.replay` alone: make and use "
    "what is on it there."
)


class _Session:
    """One pytest session's measuring; holds the fixture's object once somebody has asked for it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._vram: VramSession | None = None
        self._chosen: str | None = None  # the device, once it is known to be there
        self._uses = False  # whether some test measures
        self._written = ""  # where the report is
        self._not_written: list[str] = []
        self._environments: list[dict[str, object]] = []
        self._found: dict[bool, dict[str, object]] = {}
        self._modes: list[dict[str, Any]] = []
        self._accepted: list[Accepted] = []
        # By test id, the last try of each.
        self._tests: dict[str, dict[str, Any]] = {}
        self._failures: dict[str, dict[str, Any]] = {}

    def start(self) -> VramSession:
        if self._vram is None:
            reason = self._off()
            if reason:
                pytest.skip(reason)
            from vram.session import SessionOptions, VramSession

            options = SessionOptions(
                device=self._device(),
                card=_option(self._config, "card") or None,
                laps=_whole(self._config, "laps"),
                samples=_whole(self._config, "samples"),
                accept=bool(_option(self._config, "accept")),
                breakdown=bool(_option(self._config, "breakdown")),
            )
            self._vram = VramSession(options)
        return self._vram

    def summaries(self) -> list[dict[str, Any]]:
        """Of every recording so far."""
        return [] if self._vram is None else self._vram.summaries

    def environment(self, *, of_body: bool = False) -> dict[str, object]:
        """Where recordings are made, or the bodies of marked tests, which fewer meters read."""
        if self._vram is not None and self._vram.environment and not of_body:
            return self._vram.environment
        if of_body not in self._found:
            from vram.meters import default_meter, default_meters
            from vram.meters.environment import environment

            meters = [default_meter(self._device())] if of_body else default_meters(self._device())
            with ExitStack() as stack:
                self._found[of_body] = environment([stack.enter_context(meter) for meter in meters])
        return self._found[of_body]

    def _off(self) -> str | None:
        """Why nothing is measured; None where it is."""
        if _option(self._config, "disable"):
            return "disabled by --vram-disable"
        if importlib.util.find_spec("torch") is None:
            return "vram measures PyTorch, and torch is not installed"
        return None

    def _device(self) -> str:
        """The device to measure, known to be there. A worker of pytest-xdist gets a GPU of its own, made current."""
        if self._chosen is None:
            import torch

            from vram.meters import resolve_device
            from vram.report.github import worker_device

            named = _option(self._config, "device") or "auto"
            if named == "simulated" and _option(self._config, "card"):
                named = f"simulated:{_option(self._config, 'card')}"
            worker = getattr(self._config, "workerinput", {}).get("workerid")
            chosen = worker_device(named, worker, torch.cuda.device_count())
            try:
                self._chosen = resolve_device(chosen)
            except ValueError as error:
                if worker is not None:  # one that ends would be an internal error of pytest-xdist
                    pytest.fail(f"--vram-device: {error}", pytrace=False)
                pytest.exit(f"--vram-device: {error}", returncode=pytest.ExitCode.USAGE_ERROR)
            if chosen != named:  # never a simulated one
                torch.cuda.set_device(chosen)
        return self._chosen

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Markers that can't be read are an error of their module or class."""
        report = yield
        wrong = []
        for node in report.result or () if not _option(self._config, "disable") else ():
            if isinstance(node, pytest.Item):
                try:
                    wanted(node.iter_markers())
                except ValueError as error:
                    wrong.append(f"{node.nodeid}: {error}")
        if wrong:
            report.outcome, report.longrepr, report.result = "failed", "\n".join(wrong), []
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Find the device before the first test, where one measures; others' runs import no torch."""
        self._uses = self._off() is None and any(_measures(item) for item in session.items)
        if self._uses:
            with suppress(pytest.fail.Exception):
                self._device()

    def pytest_report_collectionfinish(self) -> list[str]:
        """The header line, once it is known that something is measured."""
        if not self._uses or self._config.get_verbosity() < 0:
            return []
        from vram.meters import default_meters
        from vram.report.github import header

        with ExitStack() as stack:
            meters = [stack.enter_context(meter) for meter in default_meters(self._device())]
            read = {meter.source: meter.read() for meter in meters}
        told = {channel for figures in read.values() for channel in figures}
        absent = {channel: why for meter in meters for channel, why in meter.absent.items() if channel not in told}
        return [header(self._device(), ", ".join(source for source, figures in read.items() if figures), absent)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """A test that is tried again is measured again, and tells its last figures alone."""
        from vram.report.github import PROPERTY

        if _FIGURES in item.stash:
            del item.stash[_FIGURES]
        item.user_properties[:] = [told for told in item.user_properties if not told[0].startswith(PROPERTY)]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
        """The body of a function or method, run by whichever plugin runs it (async ones too)."""
        __tracebackhide__ = True
        with self._watched(pyfuncitem):
            return (yield)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """The body of a unittest method, between its setUp and tearDown: pytest_pyfunc_call never sees it."""
        __tracebackhide__ = True
        instance = getattr(item, "instance", None)
        unittest = sys.modules.get("unittest")
        if unittest is None or not isinstance(instance, unittest.TestCase) or self._asked(item) is None:
            return (yield)
        assert isinstance(item, pytest.Function)
        body = item.obj
        if inspect.iscoroutinefunction(body):
            setattr(instance, item.name, self._watched_coroutine(item, body))
        else:
            item.obj = self._watched_method(item, body)
        try:
            return (yield)
        finally:
            vars(instance).pop(item.name, None)
            item.obj = body

    def _watched_method(self, item: pytest.Item, body: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(body)
        def watched(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            with self._watched(item):
                return body(*args, **kwargs)

        return watched

    def _watched_coroutine(self, item: pytest.Item, body: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(body)
        async def watched(*args: Any, **kwargs: Any) -> Any:
            __tracebackhide__ = True
            with self._watched(item):
                return await body(*args, **kwargs)

        return watched

    def _asked(self, item: pytest.Item) -> Wanted | None:
        """What the item's markers ask for; those added while it was set up may still be wrong, and raise ValueError."""
        return None if self._off() else wanted(item.iter_markers())

    @contextmanager
    def _watched(self, item: pytest.Item) -> Iterator[None]:
        """Measure a marked test's body and hold it to its markers. A body that raises reports its own error."""
        __tracebackhide__ = True
        asked = self._asked(item)
        if asked is None:
            yield
            return
        from vram.plugin.body import measured

        with measured(asked, self._device(), _let_go_of_logs) as body:
            yield
        assert body.peak_bytes is not None
        error = judge(asked, body.peak_bytes, body.kept_bytes, body.kept)
        item.stash[_FIGURES] = {
            "test": item.nodeid,
            "peak_bytes": body.peak_bytes,
            "limit_bytes": asked.limit_bytes,
            "kept_bytes": body.kept_bytes,
            "allow_bytes": asked.allow_bytes,
            "verdict": "passed" if error is None else "failed",
        }
        if error is not None:
            _raise_in(item, error)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, Any]:
        """Inconclusive is a skip with its reason; so is Undecided where the session says so. Figures go along."""
        figures = item.stash.get(_FIGURES, None) if call.when == "call" else None
        self._tell(item, figures)
        report = yield
        error = call.excinfo.value if call.excinfo is not None else None
        soft = isinstance(error, Undecided) and _option(self._config, "undecided") == "skip"
        if report.failed and (soft or isinstance(error, Inconclusive)):
            path, line, _ = report.location
            report.outcome = "skipped"
            kind = "undecided" if soft else "inconclusive"
            report.longrepr = (path, (line or 0) + 1, f"Skipped: {kind}: {error}")
        simulated = self._vram is not None and self._vram.device.startswith("simulated")
        if report.failed and simulated and any(words in str(error) for words in _NO_GPU):
            report.sections.append(("vram", _OUTSIDE))
        # Attributes of a report travel from a worker of pytest-xdist to its controller.
        told: dict[str, Any] = {} if figures is None else {"figures": figures}
        if isinstance(error, AssertionError) and type(error).__module__.startswith("vram."):
            told["failure"] = {"kind": type(error).__name__, "message": str(error)}
        if told:
            vars(report)["vram"] = told
        return report

    def _tell(self, item: pytest.Item, figures: dict[str, Any] | None) -> None:
        """Figures as properties of the test, which pytest's JUnit report takes up."""
        touched = self._vram.touched() if self._vram is not None else []
        if not touched and figures is None:
            return
        from vram.report.github import marked_properties, mode_properties

        told: dict[str, object] = dict(item.user_properties)
        for mode in touched:
            told.update(mode_properties(mode))
        if figures is not None:
            told.update(marked_properties(figures))
        item.user_properties[:] = told.items()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gather what the tests of this process, or of the workers, tell."""
        if report.when != "teardown":
            self._failures.pop(report.nodeid, None)
        told = getattr(report, "vram", {})
        if "figures" in told:
            self._tests[report.nodeid] = told["figures"]
        if "failure" in told and report.failed:
            path, line, _ = report.location
            place = {"test": report.nodeid, "file": path, "line": (line or 0) + 1}
            self._failures[report.nodeid] = {**place, **told["failure"]}

    def pytest_sessionfinish(self) -> None:
        """Write the report; a worker of pytest-xdist hands its figures to the controller instead."""
        if self._vram is not None and self._vram.summaries:
            self._modes += self._vram.summaries
            self._environments.append(self._vram.environment)
        elif self._tests and self._chosen is not None:
            from vram.meters import default_meter
            from vram.meters.environment import environment

            with default_meter(self._chosen) as meter:
                self._environments.append(environment([meter]))
        if self._vram is not None:
            self._accepted += self._vram.accepted
        workeroutput = getattr(self._config, "workeroutput", None)
        if workeroutput is not None:
            workeroutput["vram"] = {
                "modes": self._modes,
                "environments": self._environments,
                "accepted": [vars(one) for one in self._accepted],
            }
            return
        if self._accepted:
            from vram.budgets.accepted import settled

            self._accepted = settled(self._accepted)
        path = _option(self._config, "report")
        if path and (self._modes or self._tests):
            from vram.report.terminal import write_report

            tests = list(self._tests.values())
            try:
                write_report(self._config.invocation_params.dir / path, self._environment(), self._modes, tests)
                self._written = path
            except OSError as error:
                self._not_written.append(f"report not written: {error}")
        summary = os.environ.get("GITHUB_STEP_SUMMARY")
        if summary and (self._modes or self._tests):
            from vram.report.github import job_summary

            told = (self._modes, list(self._tests.values()), list(self._failures.values()))
            try:
                with Path(summary).open("a", encoding="utf-8") as file:
                    file.write(job_summary(*told, measured=self._measured_with()))
            except OSError as error:
                self._not_written.append(f"job summary not written: {error}")

    def _environment(self) -> dict[str, object]:
        from vram.report.github import merged

        return merged(self._environments)

    def _measured_with(self) -> str:
        environment = self._environment()
        return f"measured: {environment.get('source', '')}, torch {environment.get('torch')}"

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Merge what a worker of pytest-xdist measured."""
        measured = getattr(node, "workeroutput", {}).get("vram")
        if measured:
            self._modes += measured["modes"]
            self._environments += measured["environments"]
            if measured["accepted"]:
                from vram.budgets.accepted import Accepted

                self._accepted += [Accepted(**told) for told in measured["accepted"]]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """One row a recording and a marked test, what was measured with, and what was not measured and why."""
        if self._failures and os.environ.get("GITHUB_ACTIONS") == "true":
            from vram.report.github import error_commands

            root = self._config.rootpath
            workspace = Path(os.environ.get("GITHUB_WORKSPACE") or root)
            for line in error_commands(list(self._failures.values()), root, workspace):
                terminalreporter.write_line(line)
        if not self._modes and not self._tests and not self._accepted:
            return
        terminalreporter.section("vram")
        if self._environments:  # there are budgets of figures that others measured
            terminalreporter.write_line(self._measured_with())
        if self._measured_with().startswith("measured: CPU"):
            terminalreporter.write_line("not measured on a GPU: figures are of the same tensors on the CPU")
        for line in self._tables():
            terminalreporter.write_line(line)
        if self._accepted:
            from vram.budgets.accepted import diff, problems

            for line in diff(self._accepted, self._config.rootpath):
                terminalreporter.write_line(line)
            for line in problems(self._accepted, self._config.rootpath):
                terminalreporter.write_line(line, red=True)
        for line in self._not_written:
            terminalreporter.write_line(line, red=True)
        if self._written:
            terminalreporter.write_line(f"report: {Path(self._written)}")

    def _tables(self) -> list[str]:
        from vram.report.terminal import absences, ratios, table, table_of_tests, told

        lines = (table, told, absences, ratios)
        modes = [line for part in lines for line in part(self._modes)] if self._modes else []
        return modes + (table_of_tests(list(self._tests.values())) if self._tests else [])


class _History:
    """Memory figures into the runs that pytest-benchmark saves, and tests held to those: see `vram.history`."""

    def __init__(self, config: pytest.Config, measured: _Session) -> None:
        from vram.history.gate import Gate, Gatherer

        self._config = config
        self._measured = measured
        self._gatherer = Gatherer()
        self._entries: list[dict[str, Any]] = []
        self._seconds: dict[str, float] = {}
        self._saver: Saver | None = None
        self._gate: Gate | None = None
        base = _option(config, "compare")
        criteria = config.getoption("--vram-compare-fail") or config.getini("vram_compare_fail")
        if not base and not criteria:
            return
        base = base or "recorded"
        if "::" in base or base.endswith(".py") or Path(base).is_dir():
            raise pytest.UsageError(f"--vram-compare must name a run, or stand behind the tests, got {base!r}")
        try:
            self._gate = Gate(config.getoption("--benchmark-storage", None), base, criteria)
            self._gate.read()
        except ValueError as error:
            raise pytest.UsageError(f"--vram-compare: {error}") from None

    def _gathered(self, item: pytest.Item) -> list[Any]:
        figures = item.stash.get(_FIGURES, None)
        marked = None if figures is None else (figures, self._measured.environment(of_body=True))
        accepted = bool(_option(self._config, "accept"))
        self._gatherer.gather(item.nodeid, self._measured.summaries())
        if marked is None and not self._gatherer.has(item.nodeid):
            return []
        return self._gatherer.entries(item.nodeid, self._measured.environment(), marked, accepted=accepted)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """A test begins, perhaps anew."""
        self._gatherer.begin(item.nodeid)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """A test that passed is held to its base."""
        __tracebackhide__ = True
        result = yield
        if self._gate is not None and not _option(self._config, "accept"):
            error = self._gate.check(self._gathered(item))
            if error is not None:
                _raise_in(item, error)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, Any]:
        """What a test measured goes along with its report, from a worker of pytest-xdist too."""
        report = yield
        entries = self._gathered(item)
        if entries:
            from vram.history.entries import to_json

            vars(report)["vram_history"] = [to_json(entry) for entry in entries]
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Gather what the tests of this process, or of the workers, measured."""
        self._entries += getattr(report, "vram_history", ())
        if report.when == "call":
            self._seconds[report.nodeid] = report.duration

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self) -> Generator[None, Any, Any]:
        """Before pytest-benchmark saves the run, put the figures into it."""
        benchmarks = self._config.pluginmanager.getplugin("pytest-benchmark")
        if benchmarks is None or not self._entries or hasattr(self._config, "workerinput"):
            return (yield)
        from vram.history.entries import from_json
        from vram.history.gate import Saver

        self._saver = Saver(benchmarks)
        if self._saver.wanted:
            self._saver.put([from_json(told) for told in self._entries], self._seconds)
        return (yield)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """What could not be saved or read."""
        problem = self._saver.problem if self._saver is not None else ""
        for line in (problem, *(self._gate.skipped if self._gate is not None else ())):
            if line:
                terminalreporter.write_line(f"vram: {line}", red=True)


def _measures(item: pytest.Item) -> bool:
    names: Sequence[str] = getattr(item, "fixturenames", ())
    return "vram" in names or any(item.get_closest_marker(name) is not None for name in (LIMIT, LEAK_FREE))


def _raise_in(item: pytest.Item, error: Exception) -> None:
    """Raise `error` from the line where the test is defined: pytest shows that, and none of our own code."""
    defined = getattr(inspect.unwrap(getattr(item, "obj", _raise_in)), "__code__", None)
    if defined is None:
        raise error
    place = compile("raise error", defined.co_filename, "exec").replace(co_firstlineno=defined.co_firstlineno)
    types.FunctionType(place, {"error": error})()


def _let_go_of_logs() -> None:
    """pytest keeps what a test logs, with arguments and tracebacks, until the test is over: keep the words alone."""
    for handler in logging.getLogger().handlers:
        if type(handler).__module__ == "_pytest.logging":
            for record in getattr(handler, "records", ()):
                record.msg, record.args = record.getMessage(), None
                if record.exc_info:
                    record.exc_text, record.exc_info = logging.Formatter().formatException(record.exc_info), None
