"""Replaying samples: what is read when, what is kept, and how a replay ends."""

from __future__ import annotations

import asyncio
import gc
import itertools
import re
import weakref
from collections.abc import AsyncIterator, Callable, Iterator

import numpy as np
import pytest
import torch

import vram
from vram.meters import default_meter, torch_device
from vram.meters.tensor import TensorMeter
from vram.replaying.collector import frozen, unfrozen
from vram.torch_hooks.storages import living_tensors

KiB = 2**10


def test_a_lap_reads_every_sample_and_one_reading_stands_before_the_first() -> None:
    """Five laps of three samples: (5, 3) readings a channel, in the order of the samples, plus one before."""
    seen: list[int] = []
    recording = vram.replay(seen.append, [7, 8, 9])
    assert seen == [7, 8, 9] * 5
    assert (recording.laps, recording.samples, recording.runs) == (5, 3, 15)
    assert recording.channels["requested"].shape == (5, 3)
    assert set(recording.before) == set(recording.channels)


def test_channels_are_absolute_and_a_result_is_dropped_before_the_reading() -> None:
    """A tensor alive before counts; one that only the result held does not, though the peak saw it."""
    weights = torch.zeros(1000)
    recording = vram.replay(lambda n: torch.zeros(n), [250, 500])
    live, peak = recording.channels["requested"], recording.channels["requested_peak"]
    assert recording.before["requested"] >= weights.nbytes
    assert (live == recording.before["requested"]).all()
    assert (peak - live == np.array([1000, 2000])).all()


def test_a_leak_makes_the_replay_extend_itself_and_grow() -> None:
    """One kept tensor of 4 KiB a sample: twice the laps, and the message names the bytes and the first sample."""
    kept: list[torch.Tensor] = []
    recording = vram.replay(lambda _: kept.append(torch.zeros(KiB)), range(20), name="leaky")
    assert recording.laps == 10
    with pytest.raises(
        vram.MemoryGrowth, match=r"leaky: live memory \(requested\) grows by 4,096 B a sample"
    ) as failure:
        vram.assert_stable(recording)
    assert "since sample 0 of lap 0" in str(failure.value)
    assert len(str(failure.value).splitlines()) <= 25


def test_clean_work_needs_no_more_than_the_asked_laps() -> None:
    """No suspicion, no extension: `laps` decides, and a plateau or stable verdict passes."""
    recording = vram.replay(lambda n: torch.ones(n).sum(), [10, 20, 30], laps=3)
    assert recording.laps == 3
    vram.assert_stable(recording)


def test_marks_take_a_reading_each_time_they_are_reached() -> None:
    """Readings at `mark` are kept per lap and sample, in order, and see what is alive at that moment."""

    def step(n: int) -> None:
        held = []
        for _ in range(n):
            held.append(torch.zeros(256))
            vram.mark("token")

    recording = vram.replay(step, [2, 3], laps=3)
    tokens = recording.marks["token"]["requested"]
    assert [[len(sample) for sample in lap] for lap in tokens] == [[2, 3]] * 3
    assert np.diff(tokens[2][1]).tolist() == [1024, 1024]


def test_a_mark_outside_a_replay_does_nothing() -> None:
    """Programs may leave their marks in."""
    vram.mark("token")
    recording = vram.replay(lambda _: None, [0], laps=3)
    assert dict(recording.marks) == {}


def test_a_mark_first_reached_in_a_late_lap_is_filed_under_that_lap() -> None:
    """Laps and samples that never reached the mark have no readings, rather than another lap's."""
    calls = iter(range(6))

    def step(_: int) -> None:
        if next(calls) == 3:
            vram.mark("late")

    recording = vram.replay(step, [0, 1], laps=3)
    assert [[len(s) for s in lap] for lap in recording.marks["late"]["requested"]] == [[0, 0], [0, 1], [0, 0]]


def test_a_recording_cannot_be_changed() -> None:
    """Figures are frozen: neither arrays nor mappings take an assignment."""
    recording = vram.replay(lambda _: None, [0], laps=3)
    with pytest.raises(ValueError, match="read-only"):
        recording.channels["requested"][0, 0] = 1
    with pytest.raises(TypeError):
        recording.before["requested"] = 1  # type: ignore[index]


def test_nothing_the_step_made_is_kept() -> None:
    """After the replay no result is alive, not even the last one."""
    made: list[weakref.ref[torch.Tensor]] = []

    def step(_: int) -> torch.Tensor:
        result = torch.zeros(8)
        made.append(weakref.ref(result))
        return result

    recording = vram.replay(step, range(3), laps=3)
    assert recording.runs == len(made)
    assert all(ref() is None for ref in made)


def test_a_recording_that_was_found_stable_lets_go_of_its_step_and_samples() -> None:
    """Nobody will ask why it grows; until then they are kept, with nothing but the recording."""

    class Model:
        def answer(self, n: int) -> torch.Tensor:
            return torch.zeros(n)

    model, dropped = Model(), Model()
    seen, unseen = weakref.ref(model), weakref.ref(dropped)
    recording, never_judged = vram.replay(model.answer, [1]), vram.replay(dropped.answer, [1])
    del model, dropped
    gc.collect()
    assert seen() is not None
    assert unseen() is not None
    vram.assert_stable(recording)
    del never_judged
    gc.collect()
    assert (seen(), unseen()) == (None, None)


def test_garbage_cycles_are_collected_before_a_reading() -> None:
    """A tensor in a reference cycle is not growth."""

    def step(_: int) -> None:
        cycle: list[object] = [torch.zeros(KiB)]
        cycle.append(cycle)

    recording = vram.replay(step, range(20))
    assert (recording.laps, vram.verdicts(recording)["requested"].status) == (5, "stable")


@pytest.mark.usefixtures("much_to_freeze")
def test_the_collector_is_left_as_it_was_found() -> None:
    """Objects are frozen only while the replay runs, also when the step fails, and never another's freeze undone."""
    assert not frozen()
    seen: list[bool] = []
    vram.replay(lambda _: seen.append(frozen()), [0], laps=3)
    assert all(seen)
    assert not frozen()
    with pytest.raises(ZeroDivisionError):
        vram.replay(lambda n: 1 // n, [0], laps=3)
    assert not frozen()
    gc.freeze()
    try:
        living_tensors()  # the first look freezes what was made since
        before = gc.get_freeze_count()
        vram.replay(lambda _: None, [0], laps=3)
        assert gc.get_freeze_count() == before
    finally:
        gc.unfreeze()


@pytest.mark.usefixtures("much_to_freeze")
def test_what_python_hides_by_itself_is_nobody_s_freeze(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12 counts immortal objects as frozen: a replay still hides the rest, explanations none for good."""
    counted = gc.get_freeze_count
    monkeypatch.setattr(gc, "get_freeze_count", lambda: counted() + 375)
    seen: list[int] = []
    vram.replay(lambda _: seen.append(counted()), [0], laps=3)
    assert min(seen) > 10_000
    with unfrozen():
        pass
    assert counted() < 10_000


def test_another_error_of_the_step_comes_through_unchanged() -> None:
    """A ValueError is the step's own business: same object, not called out of memory."""
    error = ValueError("tried to allocate nothing")

    def step(_: int) -> None:
        raise error

    with pytest.raises(ValueError, match="nothing") as failure:
        vram.replay(step, [0])
    assert failure.value is error


def test_out_of_memory_names_sample_lap_line_and_bytes_and_holds_no_tensor() -> None:
    """CUDA's error in sample 1 of lap 0: an AssertionError with the facts, that keeps no tensor of the step alive."""
    alive: list[weakref.ref[torch.Tensor]] = []

    def step(n: int) -> None:
        held = torch.zeros(100)
        alive.append(weakref.ref(held))
        if n == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 48.00 MiB. GPU 0 has ...")

    with pytest.raises(vram.OutOfMemory) as failure:
        vram.replay(step, [0, 1, 2])
    error = failure.value
    assert isinstance(error, AssertionError)
    assert (error.lap, error.sample, error.requested_bytes) == (0, 1, 48 * 2**20)
    assert "out of memory in sample 1 of lap 0, asking for 48.00 MiB" in str(error)
    assert "test_loop.py:" in error.line
    assert error.__cause__ is None
    assert error.__context__ is None
    assert len(alive) > 2  # the samples ran again, traced
    assert all(ref() is None for ref in alive)


def test_a_real_failed_allocation_on_the_cpu_is_out_of_memory_too() -> None:
    """The CPU allocator raises a plain RuntimeError; it means the same, and tells the bytes."""
    with pytest.raises(vram.OutOfMemory) as failure:
        vram.replay(lambda _: torch.empty(2**60, dtype=torch.uint8), [0])
    assert failure.value.requested_bytes == 2**60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"samples": []}, "at least one sample"), ({"laps": 2}, "laps must"), ({"warmup_laps": -1}, "laps must")],
)
def test_a_replay_that_cannot_be_judged_is_refused(arguments: dict[str, object], message: str) -> None:
    """No samples, or fewer laps than warm-up + 2, is a ValueError before anything runs."""
    ran: list[int] = []
    with pytest.raises(ValueError, match=message):
        vram.replay(ran.append, **{"samples": [0], **arguments})  # type: ignore[arg-type]
    assert ran == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": None}, "step must be a function that takes a sample, got None"),
        ({"samples": 5}, "samples must be a list, or something else to go through, got 5"),
        ({"laps": "5"}, "laps must be a whole number, got '5'"),
        ({"laps": True}, "laps must be a whole number, got True"),
        ({"warmup_laps": 1.5}, "warmup_laps must be a whole number, got 1.5"),
        ({"warmup_laps": None}, "warmup_laps must be a whole number, got None"),
    ],
)
def test_arguments_of_another_type_are_refused_before_anything_runs(arguments: dict[str, object], message: str) -> None:
    """The error says what they must be, and what came."""
    ran: list[int] = []
    with pytest.raises(TypeError, match=re.escape(message)):
        vram.replay(**{"step": ran.append, "samples": [0], **arguments})  # type: ignore[arg-type]
    assert ran == []


def streamed(n: int) -> Iterator[torch.Tensor]:
    yield torch.zeros(n)


async def awaited(n: int) -> torch.Tensor:
    return torch.zeros(n)


async def streamed_by_a_loop(n: int) -> AsyncIterator[torch.Tensor]:
    yield torch.zeros(n)


@pytest.mark.parametrize(
    ("step", "what", "instead"),
    [
        (streamed, "a generator from streamed", "`lambda sample: list(streamed(sample))`"),
        (awaited, "a coroutine from awaited", "`lambda sample: asyncio.run(awaited(sample))`"),
        (streamed_by_a_loop, "an async generator", "`lambda sample: asyncio.run(consume(streamed_by_a_loop(sample)))`"),
        (lambda n: (torch.zeros(n) for _ in range(2)), "a generator from <lambda>", "list(work(sample))"),
        (lambda n: map(torch.zeros, [n]), "a map object", "list("),
        (lambda n: filter(torch.is_tensor, [n]), "a filter object", "list("),
    ],
)
def test_work_that_is_yet_to_be_done_is_refused(step: Callable[[int], object], what: str, instead: str) -> None:
    """A step that only returns what would do the work is a TypeError which says how to have it done: never stable."""
    with pytest.raises(TypeError, match=re.escape(what)) as failure:
        vram.replay(step, [10])
    assert instead in str(failure.value)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda n: zip(streamed(n), [1], strict=True), "a generator within a result of type zip"),
        (lambda n: enumerate(streamed(n)), "a generator within a result of type enumerate"),
        (lambda n: itertools.chain([n], streamed(n)), "a generator within a result of type chain"),
        (lambda n: itertools.islice(itertools.chain(streamed(n)), 3), "a generator within"),
        (lambda n: {"ids": torch.zeros(n), "stream": streamed(n)}, "a generator within a result of type dict"),
        (lambda n: ([n, map(torch.zeros, [n])], 1), "a map object within a result of type tuple"),
        (lambda n: [awaited(n), awaited(n)], "a coroutine within a result of type list"),
        (lambda n: [streamed_by_a_loop(n)], "an async generator within a result of type list"),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine 'awaited' was never awaited")
def test_work_that_is_yet_to_be_done_is_found_in_what_holds_it(step: Callable[[int], object], words: str) -> None:
    """A batch of streams, a stream beside its prompt, an iterator over a stream: nothing has run."""
    with pytest.raises(TypeError, match=re.escape(words)):
        vram.replay(step, [10])


def under_way(n: int) -> Iterator[torch.Tensor]:
    """A stream of which the first part is there, and whose maker goes on when it is asked."""
    stream = streamed(n)
    next(stream)
    return stream


class Output:
    """As a model's: an iterator over its parts, all of them there."""

    def __init__(self, n: int) -> None:
        self.parts = [torch.zeros(n)]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        return self.parts.pop()


@pytest.mark.parametrize(
    "step",
    [
        Output,
        lambda n: iter([torch.zeros(n)]),
        lambda n: zip(["logits"], [torch.zeros(n)], strict=True),
        lambda n: {"logits": torch.zeros(n)}.items(),
        lambda n: list(streamed(n)),
        lambda n: (torch.zeros(n), under_way(n)),
        lambda n: [list(stream := streamed(n)), stream],
        lambda n: [n] * 100_000 + [torch.zeros(n)],
        lambda n: asyncio.run(awaited(n)),
    ],
)
def test_a_result_that_can_be_iterated_is_a_result(step: Callable[[int], object]) -> None:
    """An output, or an iterator over parts that are there, was worked for; so was what a stream gave in the end."""
    recording = vram.replay(step, [250])
    assert int((recording.channels["requested_peak"] - recording.channels["requested"])[-1, 0]) >= 1000
    vram.assert_stable(recording)


def test_meters_can_be_chosen() -> None:
    """`meters` replaces the default; the recording says what it was measured with."""
    recording = vram.replay(lambda _: None, [0], laps=3, meters=[TensorMeter()])
    assert recording.environment["source"] == "CPU tensors"
    assert "caching allocator" in recording.absent["reserved"]


def test_measure_gives_live_and_peak_bytes_of_a_block() -> None:
    """Inside and after: what is alive, and the most that was."""
    with vram.measure("cpu") as measured:
        kept = torch.zeros(1000)
        torch.zeros(500).sum()
        assert measured.live_bytes - measured.before_bytes == kept.nbytes
    assert measured.live_bytes - measured.before_bytes == kept.nbytes
    assert measured.peak_bytes - measured.before_bytes >= kept.nbytes + 2000
    assert measured.source == "CPU tensors"


@pytest.mark.parametrize("device", ["cpu", "simulated"])
def test_what_is_measured_inside_counts_outside(device: str) -> None:
    """A peak before, and one within, a measurement or replay inside is the outer block's too, and the outer step's."""

    def needs(n: int) -> None:
        torch.zeros(n, dtype=torch.uint8, device=torch_device(device))

    def nested(inner: int) -> None:
        needs(3000)
        with vram.measure(device):
            needs(inner)
        vram.replay(needs, [inner, 100], laps=3, meters=[default_meter(device)])

    with vram.measure(device) as measured:
        nested(10)
        assert measured.peak_bytes - measured.before_bytes == 3000
        nested(5000)
        needs(20)
    assert measured.peak_bytes - measured.before_bytes == 5000
    recording = vram.replay(nested, [10, 6000], laps=3, meters=[default_meter(device)])
    peaks = recording.channels["requested_peak"] - recording.before["requested"]
    assert peaks.tolist() == [[3000, 6000]] * 3


def test_on_a_simulated_card_work_that_resets_its_statistics_hides_nothing() -> None:
    """The step's peak stays, while torch.cuda's own starts again, as on a card."""
    seen: list[int] = []

    def step(n: int) -> None:
        torch.zeros(n, dtype=torch.uint8, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        seen.append(torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated())

    recording = vram.replay(step, [4000], laps=3, meters=[default_meter("simulated")])
    assert (recording.channels["requested_peak"] - recording.channels["requested"]).tolist() == [[4000]] * 3
    assert seen == [0] * 3
