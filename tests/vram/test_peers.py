"""The scenarios of projects that do part of the job, and odd uses of our own. Where each scenario is tested:

 1 exactly at the limit, one byte over: test_markers.test_a_body_is_held_to_its_markers, test_api
 2 without any option: test_markers.test_a_body_is_held_to_its_markers
 3 many small leaks, 4 another thread: test_leaks_add_up_wherever_they_are_made
 5 a declared known leak: test_markers.test_a_body_is_held_to_its_markers
 6 two limits: test_markers.test_markers_that_cannot_be_read_are_collection_errors
 7 grew since the last run: history.test_plugin_history.test_a_regression_fails_its_test_until_it_is_accepted
 8 retries: test_each_try_is_measured_once, test_a_try_that_was_made_again_counts_no_more;
   test_markers.test_a_retried_test_is_measured_once_a_try
 9 xdist: test_plugin.test_a_worker_hands_its_figures_to_the_controller; the gate: history.test_plugin_history
10 JUnit properties, 11 ids of 300 characters: test_surfaces.test_one_run_on_every_surface;
   the artefact: test_a_long_id_still_gets_its_snapshot
12 no warnings: test_plugin.test_no_warnings_under_w_error_and_no_compiler
13 async: test_a_leak_of_an_async_test_is_seen; test_markers.test_a_body_is_held_to_its_markers
14 cuda:1: test_a_leak_on_cuda_1_names_it
15 a no-op, 17 a model released: test_what_is_released_is_exactly_gone
16 a body that raises: test_markers.test_a_body_is_held_to_its_markers
18 a ValueError in a step: test_loop.test_another_error_of_the_step_comes_through_unchanged
19 to 24 baselines and series of runs: history.test_compare, history.test_steps
The real series: test_series_that_were_seen_elsewhere
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import vram
from vram.meters.cuda import CudaMeter
from vram.meters.tensor import TensorMeter
from vram.replaying.rerunnable import forget
from vram.verdict.growth import Verdict

MiB = 2**20


def failures(reports: Any) -> dict[str, str]:
    """The words of each test that failed; "" for those that passed."""
    calls = [report for report in reports.getreports("pytest_runtest_logreport") if report.when == "call"]
    return {report.nodeid.partition("::")[2]: str(report.longrepr) if report.failed else "" for report in calls}


def test_leaks_add_up_wherever_they_are_made(pytester: pytest.Pytester) -> None:
    """Each of 100 leaks is small and from a line of its own, one is another thread's: the sum of all is over."""
    lines = "\n".join(f"    KEPT.append(torch.zeros({elements}))" for elements in range(1, 101))
    pytester.makepyfile(
        "import threading, pytest, torch\nKEPT = []\n"
        f"@pytest.mark.vram_leak_free(allow='20196 B')\ndef test_lines():\n{lines}\n"
        "@pytest.mark.vram_leak_free\ndef test_thread():\n"
        "    thread = threading.Thread(target=lambda: KEPT.append(torch.zeros(256)))\n    thread.start()\n"
        "    thread.join()\n"
    )
    failed = failures(pytester.inline_run())
    assert "keeps 20,200 B (19.73 KiB), 4 B over the allowed 20,196 B" in failed["test_lines"]  # 4 B x (1 + ... + 100)
    assert "keeps 1,024 B" in failed["test_thread"]


TRIES = """
    import pytest, torch
    KEPT, SIZES = [], [4096, 2048, 256]
    @pytest.mark.vram_leak_free(allow="1 KiB")
    def test_flaky(): KEPT.append(torch.zeros(SIZES.pop(0)))
    @pytest.mark.vram_limit("1 KiB")
    def test_broken(): torch.zeros(257)
"""


def test_each_try_is_measured_once(pytester: pytest.Pytester) -> None:
    """Under pytest-rerunfailures no try is billed for what an earlier one left; the last one's figures are told."""
    pytest.importorskip("pytest_rerunfailures", reason="pytest-rerunfailures is not installed")
    pytester.makepyfile(TRIES)
    result = pytester.inline_run("--reruns", "2", "--junit-xml", "junit.xml")
    calls = [report for report in result.getreports("pytest_runtest_logreport") if report.when == "call"]
    assert [report.outcome for report in calls] == ["rerun", "rerun", "passed", "rerun", "rerun", "failed"]
    told = [dict(report.user_properties) for report in calls]
    assert [figures.get("vram.kept_bytes") for figures in told] == [16384, 8192, 1024, None, None, None]
    assert [figures["vram.peak_bytes"] for figures in told[3:]] == [1028] * 3
    junit = ElementTree.parse(pytester.path / "junit.xml").getroot()  # noqa: S314 - our own file
    kept = [
        [each.get("value") for each in case.iter("property") if each.get("name") == "vram.kept_bytes"]
        for case in junit.iter("testcase")
    ]
    assert kept == [["16384"], ["8192"], ["1024"], [], [], []]


def test_a_long_id_still_gets_its_snapshot(pytester: pytest.Pytester) -> None:
    """A recording that has its test's id of 300 characters as its name: the file is there, and named in the failure."""
    pytester.makepyfile(
        """
        import pytest, torch
        KEPT = []
        @pytest.mark.parametrize("long", ["x/" * 150])
        def test_leak(vram, request, long):
            step = lambda n: KEPT.append(torch.zeros(256))
            vram.assert_stable(vram.replay(step, range(20), name=request.node.nodeid))
        """
    )
    ((_, words),) = failures(pytester.inline_run("--vram-device", "cpu")).items()
    (file,) = (pytester.path / "vram-snapshots").iterdir()
    assert str(Path("vram-snapshots", file.name)) in words


ASYNC = """
    import asyncio, pytest, torch
    KEPT = []
    async def keep():
        await asyncio.sleep(0)
        KEPT.append(torch.zeros(256))
    @pytest.mark.vram_leak_free
    @pytest.mark.MARK
    async def test_awaits(): await keep()
    @pytest.mark.vram_leak_free
    @pytest.mark.MARK
    async def test_gathers(): await asyncio.gather(asyncio.create_task(keep()), asyncio.to_thread(torch.zeros, 256))
    @pytest.mark.vram_limit("1 KiB")
    @pytest.mark.MARK
    async def test_fits(): await asyncio.to_thread(torch.zeros, 256)
    @pytest.fixture
    def anyio_backend(): return "asyncio"
"""


@pytest.mark.parametrize(("mark", "plugin"), [("anyio", "anyio"), ("asyncio", "pytest_asyncio")])
def test_a_leak_of_an_async_test_is_seen(pytester: pytest.Pytester, mark: str, plugin: str) -> None:
    """Under the plugins that people run coroutines with; tasks and threads of the test included."""
    pytest.importorskip(plugin, reason=f"{plugin} is not installed")
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makepyfile(ASYNC.replace("MARK", mark))
    failed = failures(pytester.inline_run("-p", mark))
    assert "keeps 1,024 B" in failed["test_awaits"]
    assert "keeps 1,024 B" in failed["test_gathers"]
    assert failed["test_fits"] == ""


class TwoCards:
    """`torch.cuda` as far as `CudaMeter` asks it: two cards with 8 GiB in use on each."""

    def __init__(self) -> None:
        self.live_bytes = {0: 2**33, 1: 2**33}

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 2

    def get_device_properties(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(name="card", total_memory=24 * 2**30, major=8, minor=6)

    def get_allocator_backend(self) -> str:
        return "native"

    def memory_stats_as_nested_dict(self, device: torch.device) -> dict[str, Any]:
        live = {"all": dict.fromkeys(("current", "peak"), self.live_bytes[device.index])}
        return dict.fromkeys(("requested_bytes", "allocated_bytes", "reserved_bytes"), live)

    def synchronize(self, device: torch.device) -> None: ...

    def reset_peak_memory_stats(self, device: torch.device) -> None: ...


@pytest.mark.parametrize("measured", ["cuda", "cuda:1"])
def test_a_leak_on_cuda_1_names_it(measured: str) -> None:
    """With a stand-in for two cards: the leak is on the second, whether all are measured or it alone."""
    cards = TwoCards()

    def step(_: int) -> None:
        cards.live_bytes[1] += 4096

    recording = vram.replay(step, range(20), meters=[CudaMeter(measured, allocator=cards)], name="both")
    forget(recording)  # no card to run it on again
    assert "cuda:1" in str(recording.environment["source"])
    channel = "cuda:1 requested" if measured == "cuda" else "requested"
    with pytest.raises(vram.MemoryGrowth, match=rf"\({channel}\) grows by 4,096 B a sample"):
        vram.assert_stable(recording)
    if measured == "cuda":
        assert set(recording.channels["requested"].flat) == {2**33}


def test_what_is_released_is_exactly_gone() -> None:
    """A no-op moves nothing; a model that was built, used, trained a step and dropped leaves not one byte."""

    def build(_: int) -> None:
        model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 8))
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.zeros(4, 64)).sum().backward()
        optimizer.step()

    for step in (lambda _: None, build):
        recording = vram.replay(step, [0, 1])
        assert vram.verdicts(recording)["requested"].status == "stable"
        assert set(recording.channels["requested"].flat) == {recording.before["requested"]}


def judged(series: list[int]) -> Verdict:
    """The rule's verdict on readings in MiB, 20 samples a lap."""
    return vram.judge_growth(np.array(series, dtype=np.int64).reshape(-1, 20) * MiB)


def test_series_that_were_seen_elsewhere() -> None:
    """27308 -> 27310 MiB, then flat, is no leak; 9518, 9555, 9594 MiB and on like that is one, at that rate."""
    for start in (1, 30):
        assert judged([27308] * start + [27310] * (200 - start)).status == "plateau"
    steps = np.cumsum([9518, 37, 39] + [37, 39] * 148 + [37])
    leak = judged(list(map(int, steps)))
    assert leak.status == "grows"
    assert 37 * MiB <= leak.bytes_per_sample <= 39 * MiB


ODD = """
    import gc, subprocess, sys, unittest, warnings
    import pytest, torch
    limit, leak_free = pytest.mark.vram_limit, pytest.mark.vram_leak_free
    KEPT = []
    def kib(n): return torch.zeros(256 * n)
    @pytest.fixture
    def made(): return [kib(64)]
    @pytest.fixture(scope="class")
    def shared(): return [kib(64)]
    @pytest.fixture
    def leaves():
        yield
        KEPT.append(kib(64))
    @leak_free
    @limit(0)
    def test_drops_what_its_fixture_made(made):
        made.clear()
        kib(64)
    class TestShared:
        @limit("1 KiB")
        @leak_free
        def test_first(self, shared, leaves): kib(1)
        @limit("1 KiB")
        @leak_free
        def test_second(self, shared): kib(1)
    @limit("1 KiB")
    class TestInherits:
        def test_fits(self): kib(1)
        def test_over(self): kib(2)
    @limit(0)
    @leak_free
    def test_meta_device():
        torch.set_default_device("meta")
        KEPT.append(torch.zeros(1000))
        torch.set_default_device(None)
    @limit("2 KiB")
    def test_default_dtype():
        torch.set_default_dtype(torch.float64)
        torch.zeros(256)
        torch.set_default_dtype(torch.float32)
    @leak_free
    def test_collector_off():
        gc.disable()
        loop = [kib(1)]
        loop.append(loop)
        gc.enable()
    @leak_free
    def test_skips():
        KEPT.append(kib(1))
        pytest.skip("now")
    @leak_free
    def test_fails_as_expected():
        KEPT.append(kib(1))
        pytest.xfail("known")
    @limit("1 KiB")
    def test_measures_within(vram):
        with vram.measure() as measured:
            kib(2)
        assert measured.peak_bytes - measured.before_bytes == 2048
    @limit("1 KiB")
    @leak_free
    def test_replays_within(vram):
        vram.assert_stable(vram.replay(lambda n: kib(1), range(3)))
    @leak_free
    def test_handles_an_error():
        with pytest.raises(ValueError):
            inner = kib(1)
            raise ValueError
    @limit("2 KiB")
    def test_nested_tensor(): torch.nested.nested_tensor([torch.zeros(100), torch.zeros(156)])
    @leak_free
    def test_keeps_a_nested_tensor():
        KEPT.append(torch.nested.nested_tensor([torch.zeros(100), torch.zeros(156)]))
    class TestUnit(unittest.TestCase):
        @limit("1 KiB")
        def test_subtests(self):
            for n in (1, 2):
                with self.subTest(n=n): kib(n)
        @leak_free
        def test_cleanup(self): self.addCleanup(lambda: None)
        @unittest.expectedFailure
        @leak_free
        def test_expected(self): KEPT.append(kib(1))
"""
ODD_FAILURES = {
    "TestInherits::test_over": "peak 2,048 B",
    "test_measures_within": "peak 2,048 B",
    "test_keeps_a_nested_tensor": "keeps 1,024 B",
    "TestUnit::test_subtests": "peak 2,048 B",
}


def test_odd_bodies(pytester: pytest.Pytester) -> None:
    """Changes by a test of its fixtures, PyTorch's defaults, the collector, its outcome, `vram` itself."""
    pytester.makepyfile(ODD)
    failed = failures(pytester.inline_run("--vram-device", "cpu", "-W", "ignore::UserWarning"))
    assert len(failed) == 18
    assert {test for test, words in failed.items() if words} == ODD_FAILURES.keys()
    for test, words in ODD_FAILURES.items():
        assert words in failed[test]


class Wrapper(torch.Tensor):
    """A tensor without bytes around one that has them."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Wrapper:
        wrapper: Wrapper = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)
        wrapper.held = held
        return wrapper

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return cls(func(*(arg.held if isinstance(arg, cls) else arg for arg in args), **(kwargs or {})))


class Unwilling(torch.Tensor):
    """A tensor that answers nothing."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise ZeroDivisionError(func)


class Passing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def under(mode: Any, make: Callable[[], Any]) -> Any:
    with mode:
        return make()


def eye() -> torch.Tensor:
    return torch.eye(64)


def ones() -> torch.Tensor:
    return torch.ones(16, 16)


def nested(layout: torch.layout) -> torch.Tensor:
    parts = [torch.zeros(100), torch.zeros(156)]
    return torch.nested.nested_tensor(parts, layout=layout)


INDEX = 64 * 8  # bytes of an index for each of the 64 entries of `eye`
ODD_TENSORS: dict[str, tuple[Callable[[], Any], int]] = {
    "of another dispatch mode": (lambda: under(Passing(), lambda: ones() + 1), 1024),  # type: ignore[no-untyped-call]
    "fake": (lambda: under(FakeTensorMode(), lambda: torch.zeros(10**12) + 1), 0),
    "meta": (lambda: torch.zeros(10**12, device="meta"), 0),
    "sparse, coordinates": (lambda: eye().to_sparse(), 256 + 2 * INDEX),
    "sparse, rows": (lambda: eye().to_sparse_csr().clone(), 256 + INDEX + 65 * 8),
    "sparse, columns": (lambda: eye().to_sparse_csc().clone(), 256 + INDEX + 65 * 8),
    "sparse, blocks": (lambda: eye().to_sparse_bsr((2, 2)).clone(), 4 * 128 + 32 * 8 + 33 * 8),
    "wrapping": (lambda: Wrapper(ones()) + 1, 1024),
    "a plain subclass": (lambda: ones().as_subclass(nn.Parameter) + 1, 1024),
    "a subclass that answers nothing": (
        lambda: torch.Tensor._make_subclass(Unwilling, ones()),
        1024,
    ),
    "not initialized yet": (lambda: nn.LazyLinear(3), 0),
    "nested, strided": (lambda: nested(torch.strided), 1024),
    "nested, jagged": (lambda: nested(torch.jagged), 1024 + 3 * 8),
    "of vmap": (lambda: torch.func.vmap(lambda row: row * 2)(ones()), 1024),
    "of grad": (lambda: torch.func.grad(lambda x: (x * x).sum())(ones()), 1024),
    "of a condition": (
        lambda: torch.ops.higher_order.cond(torch.tensor(True), lambda x: x + 1, lambda x: x - 1, (ones(),)),
        1024,
    ),
    "compiled": (lambda: torch.compile(lambda x: x + 1, backend="eager")(ones()), 1024),
    "in shared memory": (lambda: ones().share_memory_(), 1024),  # type: ignore[no-untyped-call]
    "NumPy's": (lambda: torch.from_numpy(np.zeros(256, np.float32)), 1024),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # layouts in beta
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", ODD_TENSORS)
def test_odd_tensors_count_by_their_bytes(name: str, inference: bool) -> None:
    """Kept, each counts with what it holds in memory, and is gone with its last owner; making it works as ever."""
    make, n_bytes = ODD_TENSORS[name]
    with torch.inference_mode(inference and name != "of grad"):
        make()
        with TensorMeter() as meter:
            with meter.watching():
                before = meter.read()["requested"]
                kept = [make() for _ in range(3)]
                gc.collect()
                assert meter.read()["requested"] - before == 3 * n_bytes
            del kept
            gc.collect()
            assert meter.read()["requested"] == before


WITHOUT_TORCH = """
    import sys
    import pytest
    @pytest.mark.vram_limit("0 B")
    @pytest.mark.vram_leak_free
    def test_marked(): assert "torch" not in sys.modules
    def test_with(vram): pass
"""


def test_where_no_torch_is_installed_it_steps_aside(pytester: pytest.Pytester) -> None:
    """Where pytest and NumPy are alone: markers ask nothing, the fixture skips with the reason, no warning."""
    path = pytester.makepyfile(WITHOUT_TORCH)
    site = pytester.mkdir("site")
    for name in ("pytest", "_pytest", "pluggy", "iniconfig", "packaging", "pygments", "py", "numpy", "vram"):
        file = Path(str(importlib.import_module(name).__file__))
        source = file.parent if file.stem == "__init__" else file
        beside = () if name == "vram" else (*source.parent.glob(f"{name}-*.dist-info"), source.with_suffix(".libs"))
        for found in (source, *beside):
            (site / found.name).symlink_to(found, found.is_dir())
    run = f"import sys; sys.path.insert(0, {str(site)!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    arguments = ("-p", "vram.plugin", "-rs", "-W", "error", "--strict-markers", path)
    result = pytester.run(sys.executable, "-S", "-I", "-c", run, *arguments)
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED *torch is not installed"])


TRIED_AGAIN = """
    import pytest, torch
    SIZES = [2000, 100]

    @pytest.fixture(scope="session")
    def shared(vram): return vram.replay(lambda n: torch.zeros(10), [1], name="shared", laps=8)

    def test_flaky(vram, shared):
        vram.assert_peak(shared, "4 KiB", above_start=True)
        size = SIZES.pop(0)
        for limit in ("8 KiB", "4 KiB"):
            recording = vram.replay(lambda n: torch.zeros(size), [1], name="flaky", laps=8)
            vram.assert_peak(recording, limit, above_start=True)
"""


def test_a_try_that_was_made_again_counts_no_more(pytester: pytest.Pytester) -> None:
    """A test that pytest calls passed needs no attention, is saved with its last try's figures, and passes the gate
    against these; a recording that the last try did not make anew stays."""
    pytest.importorskip("pytest_rerunfailures", reason="pytest-rerunfailures is not installed")
    pytester.makepyfile(TRIED_AGAIN)
    arguments = ("--reruns", "1", "--vram-device", "cpu", "--vram-report", "report.json")
    result = pytester.runpytest(*arguments, "--benchmark-autosave", "--vram-accept")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines("nothing needs attention: 3 stable")
    modes = json.loads((pytester.path / "report.json").read_text())["modes"]
    assert [(one["mode"], one["own_peak_bytes"]) for one in modes] == [("shared", 40), ("flaky", 400), ("flaky", 400)]
    (saved,) = (pytester.path / ".benchmarks").rglob("*.json")
    assert "8000" not in saved.read_text()
    again = pytester.runpytest(*arguments, "--vram-compare")
    again.assert_outcomes(passed=1)
    again.stdout.no_fnmatch_line("*needs attention: *regression*")
