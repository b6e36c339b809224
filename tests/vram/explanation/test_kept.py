"""Growth and garbage in pieces: every byte that the explanation counts, by line, module and category."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vram
from vram.explanation.allocations import Allocation
from vram.explanation.growth import Explanation, explain
from vram.explanation.retained import Names
from vram.explanation.tracer import TensorTracer
from vram.frames import Frame
from vram.replaying.rerunnable import Rerunnable
from vram.session import SessionOptions, VramSession
from vram.summary.kept import kept_from_json


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        kept = [x]
        for layer in self.layers:
            kept.append(layer(kept[-1]))
        return kept[1:]


def growth_of(
    step: Callable[[Any], object], samples: list[Any], device: str = "cpu", *, peak: bool = False
) -> Explanation:
    """The explanation, whose pieces add up to what its lines say."""
    found = explain(Rerunnable(step, samples, device), peak=peak)
    assert found.kept is not None
    lines = sum(line.bytes_per_sample for line in found.lines)
    assert sum(piece.n_bytes for piece in found.kept.pieces) == found.kept.n_bytes == round(lines * found.kept.runs)
    return found


def test_growth_by_module_and_category(tmp_path: Path) -> None:
    """A list that keeps what layers return, weights made anew in every sample, and a state: whose they are is said."""
    model, log = Model(), []

    @torch.inference_mode()
    def step(n: int) -> None:
        log.append(model(torch.zeros(n, 8)))
        log.append(torch.zeros(3))

    session = VramSession(SessionOptions(device="cpu", snapshots=tmp_path))
    recording = session.replay(step, [1, 2] * 10)
    with pytest.raises(vram.MemoryGrowth) as failure:
        session.assert_stable(recording)
    kept = session.summary(recording).growth_kept
    assert kept is not None
    assert kept == kept_from_json((failure.value.explanation or {})["breakdown"])
    assert kept.runs == 20  # the second lap of two
    assert {(piece.module, piece.category): piece.n_bytes for piece in kept.pieces} == {
        ("layers.*", "activations"): 10 * (1 + 2) * 2 * 8 * 4,
        ("", "other"): 20 * 3 * 4,
    }
    assert [piece.count for piece in kept.pieces] == [40, 20]
    lines = ["by category, a sample: activations 96 B, other 12 B", "by module, a sample: layers.* 96 B"]
    assert kept.rate_lines == lines
    assert [line.strip() for line in str(failure.value).splitlines() if line.strip() in lines] == lines
    assert session.summary(recording).explanation_lines[-2:] == lines


def test_growth_of_what_has_an_owner() -> None:
    """Weights of layers that a step adds, which only a look through all objects finds."""
    model = nn.Sequential()

    def step(_: int) -> None:
        model.append(nn.Linear(4, 4, bias=False))

    kept = growth_of(step, [0]).kept
    assert kept is not None
    assert kept.by_category == {"weights": kept.n_bytes}
    assert kept.rate_lines == []  # no module ran


def test_growth_of_a_tensor_that_is_replaced() -> None:
    """One tensor that is ever larger is one piece, as large as what it has more."""
    index = {"all": torch.zeros(0)}

    def step(_: int) -> None:
        index["all"] = torch.cat([index["all"], torch.zeros(64)])

    kept = growth_of(step, [0, 1]).kept
    assert kept is not None
    assert [(piece.count, piece.op, piece.n_bytes) for piece in kept.pieces] == [(1, "aten.cat", 10 * 64 * 4)]


def test_growth_of_a_peak() -> None:
    """Memory that is freed again and is more in each lap: the pieces are of the peak."""
    calls = []

    def step(_: int) -> None:
        calls.append(1)
        torch.zeros(64 * len(calls))

    found = growth_of(step, [0], peak=True)
    assert found.at_peak
    assert found.kept is not None
    assert [(piece.op, piece.n_bytes) for piece in found.kept.pieces] == [("aten.zeros", 19 * 64 * 4)]


def test_growth_on_a_simulated_card(tmp_path: Path) -> None:
    """The same of blocks, whose numbers are others in every run."""
    session = VramSession(SessionOptions(device="simulated:A100-40", snapshots=tmp_path))
    log: list[object] = []
    with session.on_device():
        model = Model().to("cuda:0")

    @torch.inference_mode()
    def step(n: int) -> None:
        log.append(model(torch.zeros(n, 8, device="cuda:0")))

    kept = growth_of(step, [16], "simulated:A100-40").kept
    assert kept is not None
    assert [(piece.module, piece.category) for piece in kept.pieces] == [("layers.*", "activations")]


def test_what_moves_between_modules_is_not_guessed() -> None:
    """A group with less in one module and more in another is one piece, which adds up."""
    names = Names(TensorTracer())
    frame = (Frame("model.py", 7, "forward"),)

    def made(n_bytes: int, module: str) -> Allocation:
        one = Allocation(n_bytes, "aten.cat", (1,), "float32", frame, 0)
        names._put(one, module, "activations")
        return one

    before, after = [made(8, "a"), made(16, "b")], [made(4, "a"), made(40, "b")]
    group = (after[0].line, "aten.cat", "float32")
    pieces = names.pieces([group], names.sizes(before), after)
    assert [(piece.n_bytes, piece.module, piece.category) for piece in pieces] == [(20, "", "other")]


class Session:
    def __init__(self, data: object) -> None:
        self.data, self.me = data, self


def test_garbage_over_its_limit(tmp_path: Path) -> None:
    """The sample with most garbage runs once more; what its cycles kept adds up to what was recorded."""
    model = Model()
    ran: list[int] = []

    @torch.inference_mode()
    def step(n: int) -> None:
        ran.append(n)
        Session((model(torch.zeros(n, 8)), torch.zeros(n)))
        torch.zeros(100)

    session = VramSession(SessionOptions(device="cpu", snapshots=tmp_path))
    recording = session.replay(step, [2, 5, 1], laps=3)
    ran.clear()
    with pytest.raises(vram.GarbageExceeded) as failure:
        session.assert_garbage(recording, 100)
    summary = session.summary(recording)
    kept = summary.garbage_kept
    assert kept is not None
    assert (ran, kept.sample, kept.runs) == ([5], 1, 1)
    assert kept.n_bytes == summary.garbage_bytes == 5 * 4 * (2 * 8 + 1)
    assert kept.untraced_bytes == 0
    assert {(piece.module, piece.category): piece.n_bytes for piece in kept.pieces} == {
        ("layers.*", "activations"): 5 * 4 * 2 * 8,
        ("", "other"): 5 * 4,
    }
    title, first, *_ = str(failure.value).splitlines()[1:]
    assert title == "  garbage of sample 1, run again with tracing: 340 B"
    assert first.startswith("    320 B test_kept.py") or "in 2 x layers.* (activations)" in first


def test_garbage_that_is_reported(tmp_path: Path) -> None:
    """The rerun of the highest sample suffices where that makes most garbage; another sample is run for itself."""
    ran: list[int] = []

    def step(sample: tuple[int, int]) -> None:
        ran.append(sample[0])
        torch.zeros(sample[0])
        Session(torch.zeros(sample[1]))

    session = VramSession(SessionOptions(device="cpu", breakdown="always", snapshots=tmp_path))
    session.replay(step, [(64, 8), (128, 16)], laps=3, name="same")
    assert ran[6:] == [128]
    session.replay(step, [(64, 16), (128, 8)], laps=3, name="other")
    assert ran[13:] == [128, 64]
    for one in session.summaries:
        assert one.garbage_kept is not None
        assert one.garbage_kept.n_bytes == one.garbage_bytes == 64
        assert one.garbage_text.startswith("a sample makes up to 64 B that only the garbage collector frees (Session, ")
        assert re.search(r": 64 B \S+test_kept.py:\d+ step: aten.zeros float32 \[16\]", one.garbage_text)


@pytest.mark.parametrize(("garbage", "pieces"), [([16, 16], True), ([16, 8], False)])
def test_a_breakdown_costs_one_sample(tmp_path: Path, garbage: list[int], pieces: bool) -> None:
    """A recording that is saved has one sample run once more, even if its peak creeps within what counts as stable and
    another makes more garbage: which one would name its lines is said then, and the check that needs them runs it."""
    ran: list[int] = []

    def step(sample: int) -> None:
        ran.append(sample)
        torch.zeros(64 + 64 * sample + (len(ran) > 4))
        Session(torch.zeros(garbage[sample]))

    session = VramSession(SessionOptions(device="cpu", breakdown="settled", snapshots=tmp_path))
    recording = session.replay(step, [0, 1], laps=8, warmup_laps=1)
    peaks = recording.channels["requested_peak"]
    assert peaks[-1, 1] > peaks[recording.warmup_laps, 1]
    assert ran[recording.runs :] == [1]
    one = session.summary(recording)
    assert one.breakdown is not None
    assert (one.garbage_kept is not None) is pieces
    if not pieces:
        assert one.absent["breakdown of garbage"] == (
            "sample 0 makes most garbage, and the one with the highest peak ran again; --vram-breakdown runs both"
        )
        with pytest.raises(vram.GarbageExceeded, match="garbage of sample 0, run again with tracing: 64 B"):
            session.assert_garbage(recording, 1)


def test_garbage_that_python_collects_itself_counts(tmp_path: Path) -> None:
    """A collection during the sample, as an automatic one is, and none of a call by the step."""

    def step(_: int) -> None:
        Session(torch.zeros(4))
        gc.collect()
        Session(torch.zeros(16))
        for _each in range(5000):
            Session(None)

    session = VramSession(SessionOptions(device="cpu", breakdown="always", snapshots=tmp_path))
    (one,) = [session.summary(session.replay(step, [0], laps=3))]
    assert one.garbage_kept is not None
    assert one.garbage_kept.n_bytes == one.garbage_bytes == 64
    assert one.garbage_kept.untraced_bytes == 0


def test_garbage_of_what_grows_needs_no_run_more(tmp_path: Path) -> None:
    """The runs that explain growth tell of garbage too."""
    log: list[torch.Tensor] = []
    ran: list[int] = []

    def step(n: int) -> None:
        ran.append(n)
        log.append(torch.zeros(4))
        Session(torch.zeros(n))

    session = VramSession(SessionOptions(device="cpu", snapshots=tmp_path))
    recording = session.replay(step, [8, 16] * 10)
    before = len(ran)
    with pytest.raises(vram.MemoryGrowth):
        session.assert_stable(recording)
    one = session.summary(recording)
    assert len(ran) == before + 40
    assert one.garbage_kept is not None
    assert (one.garbage_kept.n_bytes, one.garbage_kept.sample) == (64, 1)
    assert "garbage" not in (one.explanation or {})


def test_more_garbage_than_was_recorded_is_said(tmp_path: Path) -> None:
    """A sample that makes more of it when it runs again: no pieces, and why."""
    ran: list[int] = []

    def step(_: int) -> None:
        ran.append(1)
        Session(torch.zeros(16 if len(ran) <= 3 else 32))

    session = VramSession(SessionOptions(device="cpu", breakdown="always", snapshots=tmp_path))
    one = session.summary(session.replay(step, [0], laps=3))
    assert one.garbage_kept is None
    assert one.absent["breakdown of garbage"] == (
        "sample 0, run again with tracing, made 64 B more of it than was recorded"
    )
    assert one.garbage_text.endswith("float32 [16])")
