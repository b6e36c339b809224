"""The timeline of a sample: exact at its peak, bounded, by category, with lines and stacks."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vram
from vram.explanation import tracer
from vram.history.entries import of_summary
from vram.history.entries import to_json as entry_to_json
from vram.session import SessionOptions, VramSession
from vram.summary import RecordingSummary
from vram.summary.timeline import NONE, Timeline, timeline_from_json


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


def generate(device: str) -> Callable[[int], object]:
    model = Model().to(device)

    @torch.inference_mode()
    def step(tokens: int) -> None:
        x = torch.zeros(8, 16, device=device)
        for _ in range(tokens):
            x = torch.cat([x, model(x)[-1:]])

    return step


def summary_of(
    step: Callable[[Any], object], samples: list[Any], tmp_path: Path, device: str = "cpu"
) -> RecordingSummary:
    session = VramSession(SessionOptions(device=device, breakdown="always", snapshots=tmp_path))
    return session.summary(session.replay(step, samples, laps=1, name="step"))


def checked(one: RecordingSummary) -> Timeline:
    """The timeline, whose highest moment is the recorded peak in the categories of the breakdown, to the byte."""
    timeline, breakdown = one.timeline, one.breakdown
    assert timeline is not None
    assert breakdown is not None
    assert breakdown.untraced_bytes == 0
    at_peak = {name: values[timeline.peak] for name, values in timeline.bytes.items()}
    assert sum(at_peak.values()) == one.peak_bytes == breakdown.peak_bytes
    assert Counter(at_peak) == Counter(breakdown.by_category)
    assert timeline_from_json(timeline.to_json()) == timeline
    return timeline


def viewer_peak(path: Path) -> int:
    """The highest moment of the snapshot as PyTorch's viewer counts it: back from what is alive at the end."""
    snapshot = pickle.loads(path.read_bytes())  # noqa: S301 - our own file
    blocks = [block for segment in snapshot["segments"] for block in segment["blocks"]]
    alive = most = sum(block["size"] for block in blocks if block["state"] == "active_allocated")
    for event in reversed(snapshot["device_traces"][0]):
        alive += {"alloc": -event["size"], "free_completed": event["size"]}.get(event["action"], 0)
        most = max(most, alive)
    return most


@pytest.mark.parametrize("device", ["cpu", "simulated:A100-40"])
def test_the_peak_is_exact_and_opens_in_the_viewer(device: str, tmp_path: Path) -> None:
    """Categories at the highest moment add up to the recorded peak, on a simulated card too; so does the snapshot."""
    session = VramSession(SessionOptions(device=device))
    with session.on_device():
        step = generate("cuda:0" if device != "cpu" else "cpu")
    one = summary_of(step, [2, 4], tmp_path, device)
    timeline = checked(one)
    assert (timeline.sample, timeline.merged) == (1, 1)
    assert [name for _, name in timeline.ticks] == ["forward 2", "forward 3", "forward 4"]
    assert list(timeline.at) == list(range(timeline.operations + 1))
    assert viewer_peak(Path(one.timeline_snapshot)) == one.peak_bytes


def test_every_moment_is_what_is_alive(tmp_path: Path) -> None:
    """Worked out by hand: two tensors, the first freed before the third is made; which line began and which ended."""

    def step(_: int) -> None:
        a = torch.zeros(100)
        b = torch.ones(50)
        del a
        b = torch.full((200,), 2.0)
        del b

    timeline = checked(summary_of(step, [0], tmp_path))
    base = timeline.totals[0]
    assert [n_bytes - base for n_bytes in timeline.totals] == [0, 400, 600, 200, 1000, 800, 0]
    assert timeline.peak == 4

    def op(number: int) -> str:
        return "" if number == NONE else timeline.made[number].text.split(": ")[1].split(" ")[0]

    assert [op(number) for number in timeline.began] == ["", "aten.zeros", "aten.ones", "", "aten.full", "", ""]
    assert [op(number) for number in timeline.ended] == ["", "", "", "aten.zeros", "", "aten.ones", "aten.full"]
    assert [op(number) for number in timeline.largest["other"]][1:4] == ["aten.zeros", "aten.zeros", "aten.ones"]
    assert timeline.largest_bytes["other"][1:5] == (400, 400, 200, 800)
    stack = timeline.made[timeline.began[1]].stack
    assert [frame.partition(".py:")[2].partition(" ")[2] for frame in stack] == ["step"]


def test_a_peak_without_a_breakdown_has_no_snapshot(tmp_path: Path) -> None:
    """A sample that needs more when it runs again, as one that grows does: no timeline, and no file without a link."""
    kept: list[torch.Tensor] = []
    one = summary_of(lambda n: kept.append(torch.zeros(n)), [16], tmp_path / "snapshots")
    assert one.absent["breakdown"] == "sample 0, run again with tracing, needed 64 B more than was recorded"
    assert (one.timeline, one.timeline_snapshot) == (None, "")
    assert not (tmp_path / "snapshots").exists()


def test_nothing_allocated_is_no_timeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no tensor is there, and a sample makes none: a breakdown of no bytes, and nothing to draw or to write."""
    monkeypatch.setattr(tracer, "living_tensors", list)
    session = VramSession(SessionOptions(device="cpu", breakdown="always", snapshots=tmp_path / "snapshots"))
    recording = session.replay(lambda _: None, [0], laps=1, name="step", allocates=False)
    one = session.summary(recording)
    assert one.breakdown is not None
    assert one.breakdown.pieces == ()
    assert (one.timeline, one.timeline_snapshot) == (None, "")
    assert not (tmp_path / "snapshots").exists()


def test_many_operations_are_merged_and_the_peak_is_not(tmp_path: Path) -> None:
    """At most 150 moments, the peak among them, which one operation of thousands makes; how many are merged is said."""

    def step(_: int) -> None:
        for index in range(1000):
            torch.zeros(700 if index == 613 else 10)

    timeline = checked(summary_of(step, [0], tmp_path))
    assert len(timeline.at) <= 150
    assert (timeline.operations, timeline.merged) == (2000, 28)
    assert timeline.at[timeline.peak] == 2 * 613 + 1
    assert timeline.merged_text == "2,000 allocations and frees, of each 28 the lowest and the highest moment"
    assert timeline.least["other"] == min(timeline.bytes["other"])


def test_marks_are_ticks(tmp_path: Path) -> None:
    """Where the sample has marks, those: with their numbers, at most 40, and how many are left out."""

    def step(tokens: int) -> None:
        for _ in range(tokens):
            vram.mark("token")
            torch.zeros(10)

    timeline = checked(summary_of(step, [3], tmp_path))
    assert timeline.ticks == ((0, "token 0"), (2, "token 1"), (4, "token 2"))
    timeline = checked(summary_of(step, [100], tmp_path))
    assert (len(timeline.ticks), timeline.ticks_left_out) == (34, 66)


def test_the_history_keeps_an_outline_where_there_is_room(tmp_path: Path) -> None:
    """An entry has at most 3 KB of breakdown: the outline is shorter, or not there, where the pieces need it."""
    one = summary_of(generate("cpu"), [6], tmp_path)
    entry = of_summary(one, {}, "test")
    assert entry.outline
    assert max(n_bytes for _, n_bytes in entry.outline) == one.peak_bytes
    assert len(entry.outline) <= 40
    timeline = checked(one)
    texts = [timeline.outline(most) for most in (10_000, 300, 20)]
    assert [len(text.split()) for text in texts[:1]] == [len(entry.outline)]
    assert 0 < len(texts[1]) <= 300
    assert texts[2] == ""
    assert of_summary(replace(one, at_peak=None), {}, "test").outline == ()
    damaged = replace(entry, breakdown={**(entry.breakdown or {}), "outline": "3:x"})
    assert damaged.outline == ()
    assert entry_to_json(entry)["breakdown"]["outline"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("at", "0 1"),
        ("at", "5 3"),
        ("began", "99x7"),
        ("operations", 0),
        ("categories", {}),
        ("ticks", ["99 token 3"]),
        ("ticks", ["x"]),
        ("made", 3),
        ("at", "0x99999999999"),
    ],
)
def test_a_timeline_of_another_shape_is_refused(key: str, value: object, tmp_path: Path) -> None:
    """Columns of other lengths, moments and lines that are not there: one error. A later version is no timeline."""

    def step(_: int) -> None:
        torch.zeros(4)
        torch.zeros(8)
        torch.zeros(2)

    data = checked(summary_of(step, [0], tmp_path)).to_json()
    assert timeline_from_json({**data, "version": 2}) is None
    with pytest.raises(ValueError, match="not a timeline: "):
        timeline_from_json({**data, key: value})
