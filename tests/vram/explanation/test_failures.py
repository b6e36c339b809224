"""A verdict stands whatever its explanation meets: other threads, errors of any kind, objects that refuse to answer."""

from __future__ import annotations

import functools
import gc
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils import _python_dispatch

import vram
from vram.explanation import growth, out_of_memory
from vram.explanation.failures import in_a_line
from vram.explanation.tracer import TensorTracer
from vram.plugin.body import Leftovers
from vram.replaying.rerunnable import Rerunnable, remember

KEPT: list[Any] = []
FULL = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."
)


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    yield
    KEPT.clear()


def leak(_: object = None) -> None:
    KEPT.append(torch.zeros(256))


@functools.cache
def _leaky() -> vram.Recording:
    recording = vram.replay(leak, range(20))
    KEPT.clear()
    return recording


def leaky(step: Callable[[Any], object]) -> vram.Recording:
    """A recording that grows by 1,024 B a sample, whose samples run again by `step`."""
    recording = replace(_leaky())
    remember(recording, Rerunnable(step, list(range(20)), "cpu"))
    return recording


def leaking_and(act: Callable[[], object]) -> Callable[[object], None]:
    """A step that leaks, and does `act` as well."""

    def step(_: object) -> None:
        leak()
        act()

    return step


def failure_of(step: Callable[[Any], object], **options: Any) -> str:
    """The failure of an unstable step, which no error of its explanation may replace."""
    with pytest.raises(vram.MemoryGrowth, match="grows by 1,024 B a sample") as failure:
        vram.assert_stable(leaky(step), **options)
    return str(failure.value)


def raises(error: BaseException) -> Callable[..., Any]:
    def act(*_: object, **__: object) -> None:
        raise error

    return act


class Mute(Exception):
    """Its message cannot be read."""

    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        GeneratorExit(),
        Mute(),
        pytest.skip.Exception("not today"),
        MemoryError(),
        RecursionError("maximum recursion depth exceeded"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        ValueError("x" * 10_000),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_the_rerun_raises_is_one_line(error: BaseException) -> None:
    """The test fails for its growth, and says in a line that this could not be explained, and why."""
    text = failure_of(leaking_and(raises(error)))
    (line,) = [line for line in text.splitlines() if "could not be explained" in line]
    assert line.startswith(
        "  could not be explained: running sample 0 again with tracing raised " + type(error).__name__
    )
    assert len(line) < 300


def test_a_step_that_only_tracing_breaks_is_one_line() -> None:
    """It refuses to run under a dispatch mode, as libraries with fake tensors of their own do."""

    def step(_: object) -> None:
        leak()
        if _python_dispatch._get_current_dispatch_mode_stack():
            raise TypeError("no modes, please")

    assert "could not be explained: running sample 0 again with tracing raised TypeError: no modes" in failure_of(step)


def test_an_interrupt_interrupts() -> None:
    """Ctrl-C during the rerun ends the run, as anywhere else."""
    with pytest.raises(KeyboardInterrupt):
        vram.assert_stable(leaky(leaking_and(raises(KeyboardInterrupt()))))


def test_what_another_thread_lets_go_of_meanwhile_is_explained_nevertheless(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was alive after the last lap: its line is named, and the holder says that it is gone."""
    run = growth._Trace.run

    def run_and_let_go(trace: growth._Trace) -> None:
        run(trace)
        thread = threading.Thread(target=KEPT.clear)
        thread.start()
        thread.join()

    monkeypatch.setattr(growth._Trace, "run", run_and_let_go)
    text = failure_of(leak)
    assert "aten.zeros float32 [256]; 40 alive" in text
    assert "held by: nothing any more: it was let go of meanwhile" in text


def test_a_thread_that_drops_a_tensor_a_moment_after_the_last_run_loses_nothing() -> None:
    """The issue's own case: whenever the drop comes, the verdict stands and the line is named."""
    threads: list[threading.Thread] = []

    def let_go() -> None:
        time.sleep(0.05)
        KEPT.clear()

    def step(_: object) -> None:
        leak()
        if len(KEPT) == 40:
            threads.append(threading.Thread(target=let_go))
            threads[-1].start()

    assert "aten.zeros float32 [256]; 40 alive" in failure_of(step)
    for thread in threads:
        thread.join()  # else it lets go of what the next test keeps


@pytest.mark.parametrize("error", [KeyError(3), RecursionError(), SystemExit(1), MemoryError()])
def test_a_failed_search_for_holders_loses_no_line(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are named without a holder, and a note says why there is none."""
    monkeypatch.setattr(growth, "holders", raises(error))
    text = failure_of(leak)
    assert f"the holders are not known: {type(error).__name__}" in text
    assert "aten.zeros float32 [256]; 40 alive" in text
    assert "held by" not in text


@pytest.mark.parametrize("method", ["__enter__", "__exit__", "alive", "storages", "at_peak"])
def test_a_tracer_that_fails_is_one_line(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever part of the machinery breaks, the verdict is still there."""
    monkeypatch.setattr(TensorTracer, method, raises(LookupError("broken")))
    text = failure_of(leak)
    assert sum("LookupError: broken" in line for line in text.splitlines()) == 1


@pytest.mark.parametrize("error", [OSError("no space left"), TypeError("not a dict"), SystemExit(1)])
def test_a_snapshot_that_fails_is_one_line(error: BaseException) -> None:
    """Beside everything else that is known."""
    text = failure_of(leak, save=raises(error))
    assert f"no snapshot: {'' if type(error) is OSError else type(error).__name__}" in text
    assert "held by: list `KEPT`" in text


class Hostile:
    """Refuses every question that may be asked of it."""

    def _never(self, *_: object) -> Any:
        raise SystemExit("asked")

    __eq__ = __len__ = __iter__ = __getitem__ = __repr__ = __str__ = __hash__ = __contains__ = _never  # type: ignore[assignment]
    __bool__ = __getattr__ = __dir__ = _never
    __class__ = property(_never)  # type: ignore[assignment]

    def __init__(self, value: object) -> None:
        self.value = value


class HostileDict(dict[Any, Any]):
    """A dictionary that refuses as well."""

    __len__ = __iter__ = __getitem__ = __repr__ = items = keys = values = get = Hostile._never  # type: ignore[assignment]


def test_objects_that_refuse_to_answer_are_named_as_holders() -> None:
    """No code of theirs runs, so that none can raise: representations, lengths, properties, `__class__`."""

    def step(_: object) -> None:
        holder = HostileDict()
        dict.__setitem__(holder, "state", Hostile(torch.zeros(256)))
        KEPT.append(holder)

    assert "held by: attribute `value` of Hostile at key `state` of HostileDict (1 item) in list `KEPT`" in failure_of(
        step
    )


def test_a_collector_s_callback_may_let_go_meanwhile() -> None:
    """User's code that runs within collections changes what is alive while the explanation looks at it."""

    def callback(phase: str, _: dict[str, int]) -> None:
        if len(KEPT) > 30 and phase == "stop":
            del KEPT[5:8]

    gc.callbacks.append(callback)
    try:
        assert "aten.zeros float32 [256]" in failure_of(leak)
    finally:
        gc.callbacks.remove(callback)


def test_a_log_that_grows_while_it_is_written_down_is_written_down() -> None:
    """Threads that the step left behind go on to make tensors while the snapshot is made."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0):
            torch.zeros(8)

    with TensorTracer() as tracer:
        with tracer.watching(0):
            thread = threading.Thread(target=work)
            thread.start()
            for _ in range(200):
                torch.zeros(16)
        try:
            with tracer.watching(1):
                for _ in range(20):
                    assert tracer.snapshot()["device_traces"]
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize("error", [SystemExit(1), KeyError(7), GeneratorExit()])
def test_out_of_memory_stays_out_of_memory(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever listing what was alive then raises: the failure is the sample's."""

    def step(_: object) -> None:
        leak()
        if len(KEPT) > 3:
            raise FULL

    monkeypatch.setattr(out_of_memory, "tracer_for", raises(error))
    with pytest.raises(
        vram.OutOfMemory, match="what was alive then could not be listed: " + type(error).__name__
    ) as failure:
        vram.replay(step, range(20))
    assert failure.value.sample == 3


def test_a_rerun_of_an_exhausted_step_may_exit() -> None:
    """`sys.exit` in the rerun is no reason to end the whole run."""

    def step(_: object) -> None:
        leak()
        if len(KEPT) > 4:
            raise SystemExit(1)
        if len(KEPT) > 3:
            raise FULL

    with pytest.raises(vram.OutOfMemory, match=r"run again, it raised SystemExit, sample 0"):
        vram.replay(step, range(20))


def test_what_a_body_left_may_go_while_its_holder_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker thread lets go between the list of what is left and the search for its holder."""
    before = Leftovers("cpu")
    leak()
    storages = before._storages

    def storages_and_gone() -> Any:
        alive = storages()
        KEPT.clear()
        return alive

    monkeypatch.setattr(before, "_storages", storages_and_gone)
    assert before.lines()[0].endswith("held by: nothing any more: it was let go of meanwhile")


def test_an_error_in_a_line_says_its_kind() -> None:
    """With the first line of its message, where it has one."""
    assert in_a_line(KeyError(3)) == "KeyError: 3"
    assert in_a_line(ValueError("a\nb")) == "ValueError: a"
    assert in_a_line(MemoryError()) == "MemoryError"
