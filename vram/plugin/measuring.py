"""One pytest session's measuring: the fixture's object, the device, and the bodies of marked tests."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from vram.errors import Inconclusive
from vram.plugin.failures import Failures
from vram.plugin.markers import LEAK_FREE, LIMIT, judge, limits_of
from vram.plugin.options import (
    breakdown_option,
    headroom_option,
    new_fails,
    option,
    seconds_option,
    whole_option,
)
from vram.plugin.outcomes import raise_in
from vram.plugin.progress import TerminalProgress
from vram.plugin.running import RunningTests
from vram.summary import MarkedSummary, RecordingSummary

if TYPE_CHECKING:
    from vram.plugin.body import MeasuredBody
    from vram.plugin.markers import MarkerLimits
    from vram.session import RunningTest, VramSession

MARKED = pytest.StashKey[MarkedSummary]()  # of a marked test's body, until it is reported
USED = pytest.StashKey[dict[int, None]]()  # indices of the recordings that a try of a test made or judged, in order
_ACCEPTED = pytest.StashKey[int]()  # how many budgets were accepted before the first try of a test


class Measuring:
    """Hooks that measure. Heavy imports are late: pytest loads this in every project, and most measure nothing."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.vram: VramSession | None = None
        self.chosen: str | None = None  # the device, once it is known to be there
        self.uses = False  # whether some test measures
        self._failures = Failures()
        self._tests = RunningTests()
        self._test: RunningTest | None = None
        self._process = os.getpid()
        self._forks = False  # whether some test runs in a process of its own
        self.new_fails = new_fails(config)
        self.missing: Sequence[str] = ()  # a line for each recording of the base that this session did not make
        self.saved: Mapping[str, object] = {}  # where a gate's run is kept, and what it is compared with
        self.keeps = False  # whether the run is saved, or compared with one that is
        self._environments: dict[bool, dict[str, object]] = {}

    def start(self) -> VramSession:
        """The session's object, made when it is first needed. Skips the test where nothing is measured."""
        if self.vram is None:
            reason = self.off()
            if reason:
                pytest.skip(reason)
            from vram.session import SessionOptions, VramSession

            options = SessionOptions(
                device=self.device(),
                card=option(self._config, "card") or None,
                laps=whole_option(self._config, "laps"),
                samples=whole_option(self._config, "samples"),
                accept=bool(option(self._config, "accept")),
                headroom=headroom_option(self._config),
                root=self._config.rootpath,
                breakdown=breakdown_option(self._config, keeps=self.keeps),
                max_seconds=seconds_option(self._config),
            )
            self.vram = VramSession(options, TerminalProgress(self._config))
            self.vram.begin(self._test)
        return self.vram

    @property
    def forked(self) -> bool:
        """Whether this is a process of one test's own, as pytest-forked starts them."""
        return os.getpid() != self._process

    @property
    def summaries(self) -> Sequence[RecordingSummary]:
        """Every recording so far, those of earlier tries too."""
        return () if self.vram is None else self.vram.summaries

    @property
    def retried(self) -> Collection[int]:
        """Indices of the recordings that a later try of their test has made anew."""
        return () if self.vram is None else self.vram.retried

    def environment(self, *, of_body: bool = False) -> dict[str, object]:
        """Where recordings are made, or the bodies of marked tests, which fewer meters read."""
        if self.vram is not None and self.vram.environment and not of_body:
            return self.vram.environment
        if of_body not in self._environments:
            from vram.meters import default_meter, default_meters
            from vram.meters.environment import environment

            meters = [default_meter(self.device())] if of_body else default_meters(self.device())
            with ExitStack() as stack:
                self._environments[of_body] = environment([stack.enter_context(meter) for meter in meters])
        return self._environments[of_body]

    def off(self) -> str | None:
        """Why nothing is measured; None where it is."""
        if option(self._config, "disable"):
            return "disabled by --vram-disable"
        if importlib.util.find_spec("torch") is None:
            return "vram measures PyTorch, and torch is not installed"
        return None

    def device(self) -> str:
        """The device to measure, known to be there. A worker of pytest-xdist gets a GPU of its own, made current."""
        if self.chosen is None:
            import torch

            from vram.meters import resolve_device

            requested = option(self._config, "device") or "auto"
            if requested == "simulated" and option(self._config, "card"):
                requested = f"simulated:{option(self._config, 'card')}"
            worker = getattr(self._config, "workerinput", {}).get("workerid")
            chosen = worker_device(requested, worker, torch.cuda.device_count())
            try:
                self.chosen = resolve_device(chosen)
            except ValueError as error:
                if worker is not None or self.forked:  # one that ends would be a crash, or an internal error of xdist
                    pytest.fail(f"--vram-device: {error}", pytrace=False)
                pytest.exit(f"--vram-device: {error}", returncode=pytest.ExitCode.USAGE_ERROR)
            if chosen != requested:  # never a simulated one
                torch.cuda.set_device(chosen)
        return self.chosen

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Markers that can't be read are an error of their module or class."""
        report = yield
        wrong = []
        for node in report.result or () if not option(self._config, "disable") else ():
            if isinstance(node, pytest.Item):
                try:
                    limits_of(node)
                except ValueError as error:
                    wrong.append(f"{node.nodeid}: {error}")
        if wrong:
            report.outcome, report.longrepr, report.result = "failed", "\n".join(wrong), []
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Find the device before the first test, where one measures; others' runs import no torch."""
        self.uses = self.off() is None and any(measures(item) for item in session.items)
        self._forks = any(forks(item) for item in session.items)
        if self.uses and not self._forks:  # CUDA that was asked for its devices does not survive a fork
            with suppress(pytest.fail.Exception):
                self.device()
        if self.uses:
            self._tests.collected()

    def pytest_report_collectionfinish(self) -> list[str]:
        """The header line, once it is known that something is measured."""
        if not self.uses or self._config.get_verbosity() < 0:
            return []
        if self._forks:
            return [f"vram: {option(self._config, 'device') or 'auto'}, measured in the process of each test"]
        from vram.meters import default_meters
        from vram.report.terminal import header

        with ExitStack() as stack:
            meters = [stack.enter_context(meter) for meter in default_meters(self.device())]
            readings = {meter.source: meter.read() for meter in meters}
        channels = {channel for figures in readings.values() for channel in figures}
        absent = {channel: why for meter in meters for channel, why in meter.absent.items() if channel not in channels}
        return [header(self.device(), ", ".join(source for source, figures in readings.items() if figures), absent)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """A test that is tried again is measured again, and reports its last figures alone."""
        self._failures.clear()
        self._test = self._tests.begin(item) if self.uses else None
        n_accepted = 0 if self.vram is None else len(self.vram.accepted)
        first = item.stash.setdefault(_ACCEPTED, n_accepted)
        if self.vram is not None:
            self.vram.begin(self._test, [*item.stash.get(USED, {})], range(first, n_accepted))
        from vram.report.junit import PROPERTY

        if MARKED in item.stash:
            del item.stash[MARKED]
        item.stash[USED] = {}
        item.user_properties[:] = [each for each in item.user_properties if not each[0].startswith(PROPERTY)]

    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[object]) -> None:
        """Remember its name, for explanations."""
        self._tests.made(fixturedef)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note what a phase raised: its frames keep tensors, which later tests would be billed for."""
        report = yield
        if self.uses:
            self._failures.note(call)
        return report

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
        if unittest is None or not isinstance(instance, unittest.TestCase) or self._limits(item) is None:
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

    def _limits(self, item: pytest.Item) -> MarkerLimits | None:
        """Limits of the item's markers; those added while it was set up may still be wrong, and raise ValueError."""
        return None if self.off() else limits_of(item)

    @contextmanager
    def _watched(self, item: pytest.Item) -> Iterator[None]:
        """Measure a marked test's body and judge it by its markers. A body that raises reports its own error."""
        __tracebackhide__ = True
        limits = self._limits(item)
        if limits is None:
            yield
            return
        from vram.plugin.body import measured

        broken_down = bool(breakdown_option(self._config, keeps=self.keeps))
        with measured(limits, self.device(), _let_go_of_logs, broken_down=broken_down) as body:
            yield
        assert body.peak_bytes is not None
        error = judge(limits, body.peak_bytes, body.kept_bytes, body.kept, body.at_peak) or self._unseen(limits, body)
        item.stash[MARKED] = MarkedSummary(
            item.nodeid,
            body.peak_bytes,
            limits.limit_bytes,
            body.kept_bytes,
            limits.allow_bytes,
            inconclusive="nothing was allocated" if isinstance(error, Inconclusive) else "",
            lines=tuple(line.removeprefix("  ") for line in (*body.at_peak, *body.kept)),
            remarks=body.remarks,
            breakdown=body.breakdown,
            absent=body.absent,
        )
        if error is not None:
            raise_in(item, error)

    def _unseen(self, limits: MarkerLimits, body: MeasuredBody) -> Inconclusive | None:
        """The error for a body that worked elsewhere, if at all. On the CPU a test without tensors is an ordinary one:
        there is hardly another device that it could mean."""
        if self.device() == "cpu" or not limits.expects_allocations or not body.nothing_allocated:
            return None
        from vram.recording import nothing_allocated_text

        return Inconclusive(nothing_allocated_text(self.device(), "by the test", "give its marker allocates=False"))


def measures(item: pytest.Item) -> bool:
    """True where the test uses the fixture or one of the markers."""
    names: Sequence[str] = getattr(item, "fixturenames", ())
    return "vram" in names or any(item.get_closest_marker(name) is not None for name in (LIMIT, LEAK_FREE))


def forks(item: pytest.Item) -> bool:
    """True where pytest-forked runs the test in a process of its own."""
    return bool(item.config.getoption("forked", False)) or item.get_closest_marker("forked") is not None


def worker_device(device: str, worker: str | None, devices: int) -> str:
    """The device of worker "gw3": its own GPU, round robin over `devices`, unless a device was named."""
    if worker is None or device not in ("auto", "cuda") or devices < 2:
        return device
    return f"cuda:{int(worker.removeprefix('gw')) % devices}"


def _let_go_of_logs() -> None:
    """pytest keeps what a test logs, with arguments and tracebacks, until the test is over: keep the words alone."""
    for handler in logging.getLogger().handlers:
        if type(handler).__module__ == "_pytest.logging":
            for record in getattr(handler, "records", ()):
                record.msg, record.args = record.getMessage(), None
                if record.exc_info:
                    record.exc_text, record.exc_info = logging.Formatter().formatException(record.exc_info), None
