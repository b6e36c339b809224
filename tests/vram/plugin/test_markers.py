"""The markers `vram_limit` and `vram_leak_free`: what they ask, and that a test's body is held to it."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vram
from vram.plugin.body import Leftovers
from vram.plugin.markers import Mark, MarkerLimits, judge, marker_limits


def mark(name: str, *args: Any, **kwargs: Any) -> Mark:
    return SimpleNamespace(name=name, args=args, kwargs=kwargs)


@pytest.mark.parametrize(
    ("marks", "asked"),
    [
        ([], None),
        ([mark("skip"), mark("vram_other", 1)], None),
        ([mark("vram_limit", "1 MiB")], MarkerLimits(2**20, None)),
        ([mark("vram_limit", 7), mark("vram_leak_free")], MarkerLimits(7, 0)),
        ([mark("vram_leak_free", allow="1 KiB")], MarkerLimits(None, 1024)),
    ],
)
def test_markers_are_read(marks: list[Mark], asked: MarkerLimits | None) -> None:
    """A size as text or bytes, a known leak with its budget; other plugins' markers are none of ours."""
    assert marker_limits(marks) == asked


@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ([mark("vram_limit")], r'takes one size, as in vram_limit\("48 MiB"\), got vram_limit\(\)'),
        ([mark("vram_limit", "1 B", "2 B")], r"takes one size, .* got vram_limit\('1 B', '2 B'\)"),
        ([mark("vram_limit", "1 B", peak=True)], r"got vram_limit\('1 B', peak=True\)"),
        ([mark("vram_limit", "100 KBx")], "vram_limit: a size must be a number and one of .* got '100 KBx'"),
        ([mark("vram_limit", -1)], "vram_limit: a size must not be negative, got -1"),
        ([mark("vram_limit", "1 B"), mark("vram_limit", "2 B")], "a test takes one vram_limit, got 2: .*'1 B'.*'2 B'"),
        ([mark("vram_leak_free", "1 B")], r'takes allow="SIZE" and nothing else, got vram_leak_free\(\'1 B\'\)'),
        ([mark("vram_leak_free", allowed="1 B")], "takes allow="),
        ([mark("vram_leak_free", allow="some")], "vram_leak_free: a size must be"),
        ([mark("vram_leak_free"), mark("vram_leak_free")], "a test takes one vram_leak_free, got 2"),
    ],
)
def test_markers_that_cannot_be_read_are_refused(marks: list[Mark], message: str) -> None:
    """The rule, then what was written."""
    with pytest.raises(ValueError, match=message):
        marker_limits(marks)


def test_exactly_what_is_asked_passes_and_one_byte_more_does_not() -> None:
    """Both edges; the words give the excess in bytes, so that two figures never read alike."""
    assert judge(MarkerLimits(2**20, 1024), 2**20, 1024) is None
    over = judge(MarkerLimits(2**20, None), 2**20 + 1, None)
    assert isinstance(over, vram.PeakExceeded)
    assert "1,048,577 B (1.00 MiB) is 1 B over the allowed 1,048,576 B" in str(over)
    kept = judge(MarkerLimits(None, 1024), 2**30, 1025, ["  1 float32"])
    assert isinstance(kept, vram.MemoryLeak)
    assert str(kept).splitlines()[0].endswith("keeps 1,025 B (1.00 KiB), 1 B over the allowed 1,024 B")
    assert str(kept).endswith("\n  1 float32")


def test_both_findings_are_told() -> None:
    """A test that breaks both markers says so, as the first."""
    both = judge(MarkerLimits(1, 0), 2, 3)
    assert isinstance(both, vram.PeakExceeded)
    assert "vram_leak_free: the test keeps 3 B" in str(both)


def test_less_alive_than_before_is_no_leak() -> None:
    """A body that frees what others made keeps less than nothing."""
    assert judge(MarkerLimits(None, 0), 0, -5) is None


BODIES = """
    import logging, unittest
    import pytest, torch, vram
    limit, leak_free = pytest.mark.vram_limit, pytest.mark.vram_leak_free
    KEPT = []
    def kib(n):
        return torch.zeros(256 * n)
    @pytest.fixture
    def large():
        return kib(64)
    @limit("1 MiB")
    @leak_free
    def test_nothing(): pass
    @limit("4 KiB")
    def test_at_limit(large): kib(4)
    @limit("4 KiB")
    def test_one_byte_over(): torch.zeros(4097, dtype=torch.uint8)
    @pytest.mark.parametrize("n", [1, pytest.param(2, marks=limit("1 KiB")), pytest.param(3, marks=limit("3 KiB"))])
    def test_parameters(n): kib(n)
    @leak_free
    def test_leak(): KEPT.extend(kib(1) for _ in range(3))
    @leak_free(allow="2 KiB")
    def test_known(): KEPT.append(kib(2))
    @leak_free(allow="2 KiB")
    def test_more_than_known(): KEPT.append(kib(3))
    @pytest.mark.xfail(raises=vram.MemoryLeak, strict=True)
    @leak_free
    def test_expected(): KEPT.append(kib(1))
    @pytest.mark.xfail(raises=vram.PeakExceeded)
    @limit("1 KiB")
    def test_wrongly_expected(): kib(1)
    @leak_free
    @limit("0 B")
    def test_raises():
        KEPT.append(kib(1))
        raise ValueError("mine")
    @leak_free
    def test_logs():
        logging.getLogger().warning("%s", kib(1))
        try:
            inner = kib(1)
            1 / 0
        except ZeroDivisionError:
            logging.exception("handled")
    @leak_free
    def test_cycle():
        loop = [kib(1)]
        loop.append(loop)
    @leak_free
    async def test_async(): KEPT.append(kib(1))
    class TestUnit(unittest.TestCase):
        def setUp(self): self.made = kib(64)
        def tearDown(self): kib(64)
        @limit("1 KiB")
        def test_fits(self): kib(1)
        @leak_free
        def test_keeps(self): KEPT.append(kib(1))
        @limit("0 B")
        def test_own_error(self): self.assertEqual(1, 2)
    class TestAsync(unittest.IsolatedAsyncioTestCase):
        @limit("1 KiB")
        async def test_awaits(self): kib(2)
"""
RUNS_COROUTINES = """
    import asyncio, inspect, pytest
    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(pyfuncitem):
        if inspect.iscoroutinefunction(pyfuncitem.obj):
            asyncio.run(pyfuncitem.obj())
            return True
"""
ERRORS = {
    "test_one_byte_over": "PeakExceeded: vram_limit: peak 4,097 B (4.00 KiB) is 1 B over the allowed 4,096 B",
    "test_parameters[2]": "PeakExceeded: vram_limit: peak 2,048 B",
    "test_leak": "MemoryLeak: vram_leak_free: the test keeps 3,072 B (3.00 KiB)",
    "test_more_than_known": "keeps 3,072 B (3.00 KiB), 1,024 B over the allowed 2,048 B",
    "test_raises": "ValueError: mine",
    "test_async": "MemoryLeak: vram_leak_free: the test keeps 1,024 B",
    "TestUnit::test_keeps": "MemoryLeak: vram_leak_free: the test keeps 1,024 B",
    "TestUnit::test_own_error": "AssertionError: 1 != 2",
    "TestAsync::test_awaits": "PeakExceeded: vram_limit: peak 2,048 B",
}


def test_a_body_is_held_to_its_markers(pytester: pytest.Pytester) -> None:
    """Without any option: functions, parameters, classes of unittest, coroutines; what fixtures and setUp make, what
    pytest's log capture keeps and what only the collector frees is none of the body's; its own error comes first."""
    pytester.makeini("[pytest]\naddopts = --strict-markers -p no:asyncio\nfilterwarnings = error\n")
    pytester.makeconftest(RUNS_COROUTINES)
    path = pytester.makepyfile(BODIES)
    reports = pytester.inline_run("-p", "no:anyio")
    ended = {
        report.nodeid.partition("::")[2]: report
        for report in reports.getreports("pytest_runtest_logreport")
        if report.when == "call"
    }
    failed = {name for name, report in ended.items() if report.failed}
    assert failed == ERRORS.keys()
    assert len(ended) == 19
    for name, words in ERRORS.items():
        assert words in str(ended[name].longrepr)
    assert hasattr(ended["test_expected"], "wasxfail")
    assert ended["test_wrongly_expected"].passed
    leak = str(ended["test_leak"].longrepr)
    assert f"3 float32 [256], 3.00 KiB, held by: list `KEPT` (3 items), global of module {path.stem}" in leak
    assert "plugin.py" not in leak
    assert f"{path.name}:" in leak


def test_markers_that_cannot_be_read_are_collection_errors(pytester: pytest.Pytester) -> None:
    """An error of their own module or class, before anything runs; other modules are collected."""
    twice = "@pytest.mark.vram_limit('1 B')\n@pytest.mark.vram_limit('2 B')\ndef test_twice(): pass\n"
    pytester.makepyfile(
        test_size="import pytest\n@pytest.mark.vram_limit('100 KBx')\ndef test_size(): pass\n",
        test_twice="import pytest\n" + twice,
        test_class="import pytest\nclass TestC:\n    @pytest.mark.vram_leak_free(1)\n    def test_c(self): pass\n",
        test_good="import pytest\n@pytest.mark.vram_limit('1 MiB')\ndef test_good(): pass\n",
    )
    result = pytester.runpytest()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=3)
    result.stdout.fnmatch_lines_random(
        [
            "test_size.py::test_size: vram_limit: a size must be *, got '100 KBx'",
            "test_twice.py::test_twice: a test takes one vram_limit, got 2: *",
            'test_class.py::TestC::test_c: vram_leak_free takes allow="SIZE" and nothing else, got vram_leak_free(1)',
        ]
    )
    pytester.runpytest("--vram-disable").assert_outcomes(passed=4)


LINES = """
    import pytest, torch

    @pytest.fixture
    def weights():
        return torch.zeros(8 * 256)

    def freed_before():
        torch.zeros(20 * 256)

    def layer(hidden):
        gate = hidden * 2
        return torch.cat([gate, hidden])

    @pytest.mark.vram_limit("10 KiB")
    def test_lines(weights):
        kept = torch.zeros(256)
        hidden = torch.ones(4 * 256)
        for _ in range(3):
            layer(hidden)
        late = torch.zeros(256)

    @pytest.mark.vram_limit("10 KiB")
    def test_early_peak(weights):
        freed_before()
        layer(torch.ones(4 * 256))

    @pytest.mark.vram_limit("1 KiB")
    def test_resized():
        torch.empty(0).untyped_storage().resize_(5000)
"""


@pytest.mark.usefixtures("_small_heap")
def test_a_peak_over_the_limit_names_its_lines(pytester: pytest.Pytester) -> None:
    """Everything alive at the highest moment, in bytes, by line; not what ended before, nor what came after."""
    path = pytester.makepyfile(LINES)
    reports = pytester.inline_run("-p", "no:anyio").getreports("pytest_runtest_logreport")
    errors = {report.nodeid.partition("::")[2]: str(report.longrepr) for report in reports if report.when == "call"}
    assert "peak 17,408 B" in errors["test_lines"]
    title, *lines = [line[1:].strip() for line in errors["test_lines"].splitlines() if line.startswith("E")][1:]
    assert re.fullmatch("alive at the peak, besides .* that was alive before the test:", title)  # tests' before, too
    assert lines == [
        f"8.00 KiB in 1: {path.name}:12 layer: aten.cat float32 [2048]",
        f"4.00 KiB in 1: {path.name}:11 layer: aten.mul float32 [1024]",
        f"4.00 KiB in 1: {path.name}:17 test_lines: aten.ones float32 [1024]",
        f"1.00 KiB in 1: {path.name}:16 test_lines: aten.zeros float32 [256]",
    ]
    assert f"20.00 KiB in 1: {path.name}:8 freed_before: aten.zeros float32 [5120]" in errors["test_early_peak"]
    assert "layer" not in errors["test_early_peak"].partition("alive at the peak")[2]
    assert f"4.88 KiB in 1: {path.name}:29 test_resized: resize_ uint8 [5000]" in errors["test_resized"]


def test_a_peak_over_the_limit_on_a_simulated_card_names_its_lines(pytester: pytest.Pytester) -> None:
    """There the body is followed too."""
    path = pytester.makepyfile("""
        import pytest, torch
        @pytest.mark.vram_limit("1 MiB")
        def test_lines():
            weights = torch.zeros(2**18, device="cuda")
            weights * 2
            larger = torch.cat([weights, weights])
            del larger
    """)
    result = pytester.runpytest("--vram-device", "simulated")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "E*peak 3,145,728 B*",
            "E*alive at the peak*:",
            f"E*2.00 MiB in 1: {path.name}:6 test_lines: aten.cat float32 [[]524288]",
            f"E*1.00 MiB in 1: {path.name}:4 test_lines: aten.zeros float32 [[]262144]",
        ]
    )


CLOSEST = """
    import pytest, torch
    limit, leak_free = pytest.mark.vram_limit, pytest.mark.vram_leak_free
    pytestmark = [limit("2 KiB"), leak_free]
    KEPT = []
    def kib(n):
        return torch.zeros(256 * n)
    def test_module_fits(): kib(2)
    def test_module_over(): kib(3)
    @limit("4 KiB")
    def test_function_fits(): kib(4)
    @limit("1 KiB")
    def test_function_over(): kib(2)
    @leak_free(allow="1 KiB")
    def test_each_kind_by_itself_fits(): KEPT.append(kib(1))
    @leak_free(allow="1 KiB")
    def test_each_kind_by_itself_over():
        KEPT.append(kib(1))
        kib(2)
    @limit("1 KiB")
    @pytest.mark.parametrize("n", [1, pytest.param(3, marks=limit("3 KiB"), id="fits")])
    def test_larger_parameter(n): kib(n)
    @limit("3 KiB")
    @pytest.mark.parametrize("n", [3, pytest.param(2, marks=limit("1 KiB"), id="over")])
    def test_smaller_parameter(n): kib(n)
    @limit("8 KiB")
    class TestBase:
        def test_inherited_fits(self): kib(self.SIZE)
        def test_inherited_over(self): kib(self.SIZE + 1)
        @limit("9 KiB")
        def test_own_fits(self): kib(9)
        SIZE = 8
    @limit("4 KiB")
    class TestSub(TestBase):
        SIZE = 4
    @leak_free
    class TestOfAnotherKind(TestSub):
        pass
    def test_added_fits(): kib(5)
    @limit("2 KiB")
    def test_added_behind_over(): kib(5)
    @limit("2 KiB")
    def test_added_before_fits(): kib(5)
"""
ADDS_MARKERS = """
    import pytest
    def pytest_collection_modifyitems(items):
        for item in items:
            if "added" in item.name:
                mark = pytest.mark.vram_limit("5 KiB")
                item.add_marker(mark, append="behind" in item.name)
"""


@pytest.mark.usefixtures("_small_heap")
def test_the_closest_marker_of_each_kind_counts(pytester: pytest.Pytester) -> None:
    """A parameter's before the function's, then its class's, base classes', module's; the others are overridden."""
    pytester.makeconftest(ADDS_MARKERS)
    pytester.makepyfile(CLOSEST)
    reports = pytester.inline_run("-p", "no:anyio").getreports("pytest_runtest_logreport")
    failed = {report.nodeid.partition("::")[2] for report in reports if report.failed}
    ran = {report.nodeid.partition("::")[2] for report in reports}
    assert failed == {name for name in ran if "over" in name}
    assert len(ran) == 22
    assert len(failed) == 8


def test_a_marker_that_is_overridden_is_read_too(pytester: pytest.Pytester) -> None:
    """A size that cannot be read is an error wherever it is written; two on one function leave open which counts."""
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.vram_limit("100 KBx")
        @pytest.mark.vram_limit("1 MiB")
        def test_overrides(): pass
        """
    )
    result = pytester.runpytest()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines("*test_overrides: vram_limit: a size must be *, got '100 KBx'")


RETRIES = """
    import pytest
    from _pytest.runner import runtestprotocol
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(item, nextitem):
        for last in (False, True):
            reports = runtestprotocol(item, nextitem=nextitem, log=False)
            for report in reports:
                if report.failed and not last:
                    report.outcome = "rerun"
                item.ihook.pytest_runtest_logreport(report=report)
            item._initrequest()
        return True
"""


def test_a_retried_test_is_measured_once_a_try(pytester: pytest.Pytester) -> None:
    """As pytest-rerunfailures retries: the second try is not billed for the first, and its figures alone are told."""
    pytester.makeconftest(RETRIES)
    pytester.makepyfile(
        """
        import pytest, torch
        KEPT, SIZES = [], [1024, 256]
        @pytest.mark.vram_leak_free(allow="2 KiB")
        def test_flaky():
            freed_late = [torch.zeros(SIZES[0] // 2)]
            freed_late.append(freed_late)
            KEPT.append(torch.zeros(SIZES.pop(0)))
        @pytest.mark.vram_limit("2 KiB")
        def test_broken():
            assert len(KEPT) == 2
            KEPT.append(torch.zeros(1024))
        """
    )
    calls = pytester.inline_run().getreports("pytest_runtest_logreport")
    first, second, over, broken = [report for report in calls if report.when == "call"]
    assert (first.outcome, second.outcome) == ("rerun", "passed")
    assert dict(first.user_properties)["vram.kept_bytes"] == 4096
    assert second.user_properties == [
        ("vram.peak_bytes", 1536),
        ("vram.kept_bytes", 1024),
        ("vram.allow_bytes", 2048),
        ("vram.outcome", "passed"),
    ]
    assert dict(over.user_properties)["vram.peak_bytes"] == 4096
    assert (broken.outcome, broken.user_properties) == ("failed", [])


def test_a_storage_at_the_address_of_a_freed_one_is_new() -> None:
    """Addresses are used again: what is told is what is alive, all of it."""
    old = [torch.zeros(10) for _ in range(50)]
    leftovers = Leftovers("cpu")
    del old
    kept = [torch.zeros(10) for _ in range(60)]
    assert leftovers.lines()[0].startswith("  60 float32 [10], 2.34 KiB, held by: ")
    del kept
    assert leftovers.lines() == []


@pytest.mark.filterwarnings("ignore:simulated CUDA is tested with torch")
def test_the_first_matrix_product_of_a_simulated_card_is_no_leak(pytester: pytest.Pytester) -> None:
    """cuBLAS's workspaces are no test's own, whichever test comes first; the default one is no part of its limit."""
    pytester.makepyfile(
        """
        import pytest, torch

        @pytest.mark.vram_leak_free
        @pytest.mark.vram_limit("3 KiB")
        def test_product(vram):
            matrix = torch.zeros(16, 16, device=vram.torch_device)
            matrix @ matrix

        @pytest.mark.vram_leak_free
        @pytest.mark.parametrize("time", [1, 2])
        def test_product_of_autograd_s_thread(vram, time):
            matrix = torch.zeros(16, 16, device=vram.torch_device, requires_grad=True)
            (matrix @ matrix).sum().backward()

        @pytest.mark.vram_leak_free
        @pytest.mark.parametrize("time", [1, 2])
        def test_product_of_another_stream(vram, time):
            with torch.cuda.stream(torch.cuda.Stream()):
                matrix = torch.zeros(16, 16, device=vram.torch_device)
                matrix @ matrix

        @pytest.mark.vram_leak_free
        def test_leak(vram, request):
            request.config.kept = torch.zeros(1000, device=vram.torch_device)
        """
    )
    result = pytester.runpytest_inprocess("--vram-device", "simulated", "--vram-card", "23.5GiB")
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines("*keeps 4,000 B*")


_MEASURES_INSIDE = """
    import pytest, torch

    def needs(vram, n):
        torch.zeros(n, dtype=torch.uint8, device=vram.torch_device)

    @pytest.mark.vram_limit("4 KiB")
    def test_replays(vram):
        needs(vram, 5000)
        vram.replay(lambda n: needs(vram, n), [1], laps=3)

    @pytest.mark.vram_limit("4 KiB")
    def test_measures(vram):
        needs(vram, 5000)
        with vram.measure():
            needs(vram, 1)
"""


@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_a_limit_holds_for_what_comes_before_a_replay_or_measurement(pytester: pytest.Pytester, device: str) -> None:
    """The body needed 5,000 B and let go of them before it replayed: still over a limit of 4 KiB."""
    pytester.makepyfile(_MEASURES_INSIDE)
    result = pytester.runpytest("--vram-device", device)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*PeakExceeded: vram_limit: peak 5,000 B*"] * 2)
