"""Out of memory is an outcome: which sample, which line, how many bytes, and what was alive."""

from __future__ import annotations

import gc
import inspect
import weakref

import pytest
import torch

import vram
from vram.explanation.allocations import BEFORE, Allocation
from vram.explanation.out_of_memory import alive_lines
from vram.frames import Frame
from vram.meters.tensor import TensorMeter
from vram.replaying.out_of_memory import is_out_of_memory, requested_bytes, room

MiB = 2**20
SAID = (
    "CUDA out of memory. Tried to allocate 48.00 MiB. GPU 0 has a total capacity of 23.68 GiB of which 35.19 MiB is "
    "free. Process 1 has 23.6 GiB memory in use."
)
WEIGHTS: list[torch.Tensor] = []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError(SAID), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
        (MemoryError(), False),
    ],
)
def test_what_is_out_of_memory_and_what_is_not(error: Exception, expected: bool) -> None:
    """PyTorch's error and the runtime errors that mean the same; nothing else, not even if it says so."""
    assert is_out_of_memory(error) is expected


class _Wordless(RuntimeError):
    def __str__(self) -> str:
        raise ValueError("no words")


def test_an_error_without_words_comes_through() -> None:
    """An error of the step whose text cannot be read is the step's own, and not replaced by another."""

    def step(_: object) -> None:
        raise _Wordless

    with pytest.raises(_Wordless):
        vram.replay(step, [0], meters=[TensorMeter()])


def test_bytes_asked_for_are_read_from_the_words() -> None:
    """CUDA words them rounded, the CPU exactly; none is None."""
    assert requested_bytes(torch.OutOfMemoryError(SAID)) == 48 * MiB
    assert requested_bytes(RuntimeError("you tried to allocate 12345 bytes.")) == 12345
    assert requested_bytes(RuntimeError("CUDA error: out of memory")) is None


def test_free_and_fragmented_bytes_are_told_where_they_are_known() -> None:
    """Free as the error words it; fragmented is reserved less allocated, rounding allocated less requested."""
    readings = {"reserved": 20 * MiB, "allocated": 15 * MiB, "requested": 14 * MiB}
    free, fragmented = room(torch.OutOfMemoryError(SAID), readings)
    assert free == "35.19 MiB free on the device"
    assert fragmented.startswith("5.00 MiB reserved by PyTorch and in no tensor (fragmented), 1.00 MiB")
    assert room(RuntimeError("no words"), {"requested": 1, "allocated": 1}) == []


def attend(n: int) -> torch.Tensor:
    scores = torch.ones(n, MiB)  # scores
    if n == 3:
        torch.empty(2**60, dtype=torch.uint8)  # fails
    return scores


def line_of(word: str) -> int:
    source, first = inspect.getsourcelines(attend)
    return first + next(number for number, line in enumerate(source) if line.rstrip().endswith(f"# {word}"))


def test_what_was_alive_is_told_by_line_and_what_was_there_by_its_holder() -> None:
    """The failing line is the user's; scores of the failing sample and the weights from before have their bytes."""
    WEIGHTS[:] = [torch.zeros(4 * MiB), torch.zeros(4 * MiB)]  # more than other tests leave
    try:
        with pytest.raises(vram.OutOfMemory) as failure:
            vram.replay(attend, [1, 2, 3])
    finally:
        WEIGHTS.clear()
    error = failure.value
    text = str(error)
    assert (error.lap, error.sample, error.requested_bytes) == (0, 2, 2**60)
    assert f"test_out_of_memory.py:{line_of('fails')} attend" in error.line
    place = f"tests/vram/replaying/test_out_of_memory.py:{line_of('scores')}"
    assert f"12.00 MiB in 1: {place} attend: aten.ones float32 [3, 1048576]" in text
    assert "32.00 MiB in 2: made before: float32 [4194304]" in text
    assert "held by: list `WEIGHTS` (2 items), global of module tests.vram.replaying.test_out_of_memory" in text
    assert len(text.splitlines()) <= 25


def test_a_failure_that_does_not_come_again_is_said_with_the_peak_instead() -> None:
    """Room the second time: still what the sample holds at its most, and said to be that."""
    calls: list[int] = []

    def step(n: int) -> None:
        calls.append(n)
        held = torch.zeros(8 * MiB)
        if len(calls) == 2:
            raise torch.OutOfMemoryError(SAID)
        del held

    with pytest.raises(vram.OutOfMemory, match="there was room; alive at the peak of sample 1") as failure:
        vram.replay(step, [0, 1, 2])
    assert "aten.zeros float32 [8388608]" in str(failure.value)
    assert "35.19 MiB free" in str(failure.value)


def test_another_error_of_the_rerun_is_said_and_hides_nothing() -> None:
    """A step that cannot run twice: the verdict is out of memory all the same."""
    calls: list[int] = []

    def step(n: int) -> None:
        calls.append(n)
        if len(calls) == 1:
            raise torch.OutOfMemoryError(SAID)
        raise KeyError("gone")

    with pytest.raises(vram.OutOfMemory, match=r"run again, it raised KeyError, sample 0"):
        vram.replay(step, [0])


def test_nothing_of_the_step_is_kept_by_the_error() -> None:
    """Tensors of both failed runs are gone while the error is still held, without a collection."""
    alive: list[weakref.ref[torch.Tensor]] = []

    class Model:
        def __call__(self, _: int) -> None:
            hidden = torch.zeros(10)
            alive.append(weakref.ref(hidden))
            torch.empty(2**60, dtype=torch.uint8)

    model = Model()
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(vram.OutOfMemory) as failure:
            vram.replay(model, [0])
        assert len(alive) == 2
        assert all(ref() is None for ref in alive)
        assert failure.value.__context__ is None
        assert failure.value.__cause__ is None
    finally:
        gc.enable()


def test_at_most_ten_lines_are_told_and_the_rest_summed_up() -> None:
    """Fifteen lines of falling size: the ten largest, largest first, and the bytes of the other five."""
    alive = [Allocation(15 - n, "aten.add", (1,), "float32", (Frame("m.py", n, "f"),), run=0) for n in range(15)]
    alive.append(Allocation(100, "", (25,), "float32", (), run=BEFORE))
    lines = alive_lines(alive, lambda group: "the model")
    assert lines[:3] == ["    100 B in 1: made before: float32 [25]", "      held by: the model", lines[2]]
    assert lines[2] == "    15 B in 1: m.py:0 f: aten.add float32 [1]"
    assert lines[-1] == "    and 21 B in 6 more lines"
    assert len(lines) == 12


def test_the_run_goes_on_with_the_next_test(pytester: pytest.Pytester) -> None:
    """Out of memory fails its test only, on at most 25 lines; the next one measures as if nothing had been."""
    pytester.makepyfile(
        """
        import torch
        BEFORE = []
        def test_first(vram):
            BEFORE.append(vram.replay(lambda n: None, [0], name="first").before["requested"])
        def test_too_large(vram):
            def step(n):
                held = torch.zeros(2**24)
                torch.empty(2**60, dtype=torch.uint8)
            vram.replay(step, [0, 1], name="huge")
        def test_next(vram):
            recording = vram.replay(lambda n: torch.zeros(1000), [0, 1], name="next")
            vram.assert_peak(recording, recording.before["requested"] + 4000)
            assert recording.before["requested"] < BEFORE[0] + 2**20
        """
    )
    result = pytester.runpytest_inprocess("--vram-device", "cpu", "--vram-report", "memory.json")
    result.assert_outcomes(failed=1, passed=2)
    printed = [line for line in result.outlines if line.startswith("E ")]
    assert "OutOfMemory: out of memory in sample 0 of lap 0, asking for 1,048,576.00 TiB, at " in printed[0]
    assert any("64.00 MiB in 1: " in line and "step: aten.zeros float32 [16777216]" in line for line in printed)
    assert len(printed) <= 25
