"""A failing growth test names lines and holders, and what its rerun leaves alone. Planted leaks: the zoo."""

from __future__ import annotations

import functools
import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vram
from vram.explanation.allocations import Allocation
from vram.explanation.groups import by_line, shapes
from vram.explanation.growth import Explanation, Line
from vram.frames import Frame
from vram.replaying.collector import frozen


def test_samples_and_marks_that_it_comes_from_are_named() -> None:
    """Only sample 1 leaks, and only from its third token on: both are said."""
    kept: list[torch.Tensor] = []

    def step(tokens: int) -> None:
        for token in range(tokens):
            vram.mark("token")
            if token >= 2:
                kept.append(torch.zeros(256))

    recording = vram.replay(step, [2, 4] * 5)
    with pytest.raises(vram.MemoryGrowth, match=r"only from samples 1, 3, 5, 7, 9; first after token 2"):
        vram.assert_stable(recording)


def test_what_is_replaced_in_every_run_comes_from_no_sample_in_particular() -> None:
    """Only the last of the larger and larger tensors is alive: which sample made that one says nothing."""
    index = {layer: torch.zeros(0) for layer in range(2)}

    def step(_: int) -> None:
        for layer in index:
            index[layer] = torch.cat([index[layer], torch.zeros(64)])

    with pytest.raises(vram.MemoryGrowth) as failure:
        vram.assert_stable(vram.replay(step, range(20)))
    assert "aten.cat float32 [15360]; 2 alive" in str(failure.value)
    assert "only from" not in str(failure.value)


def test_growth_that_tracing_does_not_reproduce_is_said_in_a_line() -> None:
    """A step that leaks in the replay only: the verdict stands, and one line says that no line can be named."""
    kept: list[torch.Tensor] = []
    calls: list[int] = []

    def step(_: int) -> None:
        calls.append(1)
        if len(calls) <= 200:
            kept.append(torch.zeros(256))

    recording = vram.replay(step, range(20), name="leaky")
    with pytest.raises(vram.MemoryGrowth, match="with tracing did not make it grow") as failure:
        vram.assert_stable(recording)
    assert "grows by 1,024 B a sample" in str(failure.value)
    assert sum("tracing" in line for line in str(failure.value).splitlines()) == 1


@pytest.mark.parametrize("error", [ValueError("worn\nout"), pytest.fail.Exception("not today")])
def test_a_rerun_that_raises_leaves_the_verdict_standing(error: BaseException) -> None:
    """Whatever the rerun raises, pytest's own outcomes included, the test fails for its growth, and says the rest."""
    kept: list[torch.Tensor] = []

    def step(_: int) -> None:
        kept.append(torch.zeros(256))
        if len(kept) > 200:
            raise error

    recording = vram.replay(step, range(20))
    with pytest.raises(vram.MemoryGrowth, match=f"sample 0 again with tracing raised {type(error).__name__}: "):
        vram.assert_stable(recording)


def test_an_explanation_keeps_nothing_alive_and_leaves_the_collector_as_it_was() -> None:
    """Tensors, step and samples are gone with the leak itself; thresholds and freezing are untouched."""

    class Sample:
        pass

    kept: list[torch.Tensor] = []
    step = functools.partial(lambda held, _: held.append(torch.zeros(256)), kept)
    samples = [Sample() for _ in range(20)]
    recording = vram.replay(step, samples)
    before = gc.get_threshold(), frozen(), gc.isenabled()
    with pytest.raises(vram.MemoryGrowth, match="held by: list"):
        vram.assert_stable(recording)
    assert (gc.get_threshold(), frozen(), gc.isenabled()) == before
    alive = [weakref.ref(thing) for thing in (*kept, *samples, step)]
    assert len(alive) > 200
    del kept, samples, step
    gc.collect()
    assert recording.laps == 10
    assert [ref() for ref in alive if ref() is not None] == []


@pytest.mark.usefixtures("much_to_freeze")
def test_what_someone_froze_stays_frozen_and_is_found_nevertheless() -> None:
    """A holder out of the collector's sight is named, and out of sight again afterwards."""
    kept: list[torch.Tensor] = []
    gc.freeze()
    try:
        recording = vram.replay(lambda _: kept.append(torch.zeros(256)), range(20))
        with pytest.raises(vram.MemoryGrowth, match=r"list `kept` \(\d+ items\), closure variable of the step"):
            vram.assert_stable(recording)
        assert frozen()
    finally:
        gc.unfreeze()


def test_asked_again_it_answers_the_same_and_runs_nothing() -> None:
    """Two tests on one recording of a session: the same explanation, one rerun."""
    kept: list[torch.Tensor] = []
    recording = vram.replay(lambda _: kept.append(torch.zeros(256)), range(20))
    texts = []
    for _ in range(2):
        with pytest.raises(vram.MemoryGrowth) as failure:
            vram.assert_stable(recording)
        texts.append(str(failure.value))
        length = len(kept)
    assert texts[0] == texts[1]
    assert len(kept) == length == 240


def test_a_stable_step_is_not_run_again() -> None:
    """No growth, no rerun: the samples run exactly laps x samples times."""
    runs: list[int] = []
    vram.assert_stable(vram.replay(runs.append, range(20), allocates=False))
    assert len(runs) == 100


def test_a_ring_buffer_beside_a_leak_is_not_accused() -> None:
    """A tensor that is replaced all the time is alive at the end too, and no growth."""
    kept: list[torch.Tensor] = []
    ring: list[torch.Tensor] = []

    def step(_: int) -> None:
        kept.append(torch.zeros(8))
        ring.append(torch.ones(4096))
        del ring[:-5]

    recording = vram.replay(step, range(20))
    with pytest.raises(vram.MemoryGrowth) as failure:
        vram.assert_stable(recording)
    assert "aten.zeros float32 [8]; 40 alive" in str(failure.value)
    assert "aten.ones" not in str(failure.value)


def test_a_snapshot_that_cannot_be_written_is_told_and_changes_nothing(tmp_path: Path) -> None:
    """A full disk is no reason to hide a leak."""
    kept: list[torch.Tensor] = []
    recording = vram.replay(lambda _: kept.append(torch.zeros(256)), range(20))

    def save(_: dict[str, Any]) -> Path:
        raise OSError("no space left")

    with pytest.raises(vram.MemoryGrowth, match="no snapshot: no space left"):
        vram.assert_stable(recording, save=save)


def allocation(line: int, shape: tuple[int, ...], n_bytes: int = 4) -> Allocation:
    return Allocation(n_bytes, "aten.add", shape, "float32", (Frame("model.py", line, "forward"),), run=0)


def test_shapes_are_told_as_ranges() -> None:
    """One shape as it is, several of a rank as ranges, several ranks as that."""
    assert shapes([allocation(1, (1, 64))]) == "[1, 64]"
    assert shapes([allocation(1, (1, 24)), allocation(1, (1, 5)), allocation(1, (1, 9))]) == "[1, 5..24]"
    assert shapes([allocation(1, ()), allocation(1, (2,))]) == "various shapes"


def test_allocations_are_grouped_by_line_operation_and_dtype() -> None:
    """Two shapes of one line are one group, two lines are two; empty storages are none."""
    groups = by_line([allocation(1, (1,)), allocation(1, (2,)), allocation(2, (1,)), allocation(3, (0,), n_bytes=0)])
    assert [len(group) for group in groups.values()] == [2, 1]


@pytest.mark.parametrize("room", [3, 5, 12])
def test_a_long_explanation_keeps_to_its_room_and_tells_what_it_left_out(room: int) -> None:
    """However many lines there are, the text fits, and its last line is the snapshot."""
    lines = tuple(
        Line(f"model.py:{n} forward", "", "aten.add", "float32", "[1]", 100.0, 4000, 40, "", f"list `kept{n}`")
        for n in range(30)
    )
    text = Explanation(lines, runs=40, snapshot=Path("x.pickle")).text(room)
    assert len(text) <= room
    assert text[-1].endswith("x.pickle")
    assert "more line" in text[-2]


def test_a_card_of_known_size_is_full_after_its_headroom() -> None:
    """On a card with 10 MiB left at 4,096 B a sample: 2,560 samples."""
    recording = vram.replay(lambda _: None, [0] * 20)
    figures = 1000 + 4096 * torch.arange(200).reshape(10, 20).numpy()
    full = int(figures[-1, -1]) + 10 * 2**20
    grown = replace(
        recording,
        channels={"requested": figures},
        before={"requested": 0},
        seconds=figures.astype("float64"),
        environment={"device_bytes": full},
    )
    with pytest.raises(vram.MemoryGrowth, match=r"a card of .* is full after 2,560 samples"):
        vram.assert_stable(grown)
