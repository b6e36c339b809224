"""Snapshots of a CPU trace are what PyTorch's memory viewer takes."""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.cuda import _memory_viz

from vram.explanation.allocations import Allocation, Event
from vram.explanation.snapshot import viewer_snapshot, write_snapshot
from vram.explanation.tracer import TensorTracer
from vram.frames import Frame

# What the viewer's own unpickler (MemoryViz.js in PyTorch's repository) knows.
_VIEWER_KNOWS = """
APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPUT BINUNICODE DICT EMPTY_DICT EMPTY_LIST EMPTY_TUPLE FRAME
LIST LONG1 LONG_BINGET LONG_BINPUT MARK MEMOIZE NEWFALSE NEWTRUE NONE PROTO SETITEM SETITEMS SHORT_BINUNICODE STOP
TUPLE TUPLE1 TUPLE2 TUPLE3
"""


def made(n_bytes: int, line: int = 1) -> Allocation:
    return Allocation(n_bytes, "aten.zeros", (n_bytes,), "uint8", (Frame("model.py", line, "forward"),), run=0)


@pytest.fixture
def traced() -> dict[str, Any]:
    """A real trace: one tensor from before that stays, one that goes, temporaries, and one that is kept."""
    stays, goes = torch.zeros(10), torch.zeros(20_011)  # no other test leaves one of that size
    with TensorTracer() as tracer:
        with tracer.watching(0):
            for _ in range(3):
                torch.zeros(1000).sum()
            kept = torch.ones(500)
            del goes
        snapshot = tracer.snapshot()
    assert stays.nbytes + kept.nbytes == 2040
    return snapshot


def test_pytorch_s_own_tools_take_it(traced: dict[str, Any]) -> None:
    """Timeline, segments, flame graph and totals are made by torch.cuda._memory_viz without complaint."""
    assert "Active Memory Timeline" in _memory_viz.trace_plot(traced)  # type: ignore[no-untyped-call]
    assert "Allocator State History" in _memory_viz.segment_plot(traced)
    assert "total_reserved" in _memory_viz.segsum(traced)  # type: ignore[no-untyped-call]
    assert "test_snapshot.py" in _memory_viz.memory(traced, format_flamegraph=str)  # type: ignore[no-untyped-call]
    listing = _memory_viz.trace(traced)  # type: ignore[no-untyped-call]
    assert listing.count("del ") == len([e for e in traced["device_traces"][0] if e["action"] == "free_requested"])


def test_what_is_alive_at_the_end_is_in_blocks_that_fill_their_segment(traced: dict[str, Any]) -> None:
    """Blocks follow one another without a hole, and add up to the segment; active ones are the living bytes."""
    (segment,) = traced["segments"]
    address = segment["address"]
    for block in segment["blocks"]:
        assert block["address"] == address
        address += block["size"]
    assert address == segment["address"] + segment["total_size"]
    active = [block for block in segment["blocks"] if block["state"] == "active_allocated"]
    assert sum(block["size"] for block in active) == segment["allocated_size"]
    assert {2000, 40} <= {block["size"] for block in active}
    assert 80_044 not in {block["size"] for block in active}


def test_addresses_in_use_never_overlap() -> None:
    """Replaying the timeline: every allocation is free space of the one segment at that moment."""
    events = [
        Event("free", 0, made(64)),  # from before, its beginning not in the log
        *(Event("alloc", key, made(size)) for key, size in enumerate([64, 32, 64, 128], start=1)),
        Event("free", 1, made(64)),
        Event("free", 2, made(32)),
        *(Event("alloc", key, made(size)) for key, size in enumerate([64, 16, 32], start=5)),
    ]
    alive = [(key, made(size)) for key, size in ((3, 64), (4, 128), (5, 64), (6, 16), (7, 32), (8, 8))]
    snapshot = viewer_snapshot(events, alive)
    (segment,) = snapshot["segments"]
    used = {block["address"]: block["size"] for block in segment["blocks"] if block["state"] != "inactive"}
    for event in reversed(snapshot["device_traces"][0]):
        if event["action"] == "alloc":
            assert used.pop(event["addr"]) == event["size"]
        elif event["action"] == "free_completed":
            start, end = event["addr"], event["addr"] + event["size"]
            assert all(end <= other or other + size <= start for other, size in used.items())
            assert segment["address"] <= start < end <= segment["address"] + segment["total_size"]
            used[start] = event["size"]
    assert sorted(used.values()) == [8, 64]  # what was there before the log began


def test_nothing_traced_is_an_empty_snapshot() -> None:
    """No storages: no segment, one empty timeline, and the tools still take it."""
    snapshot = viewer_snapshot([], [])
    assert snapshot["segments"] == []
    assert snapshot["device_traces"] == [[]]
    assert "0.0B" in _memory_viz.segsum(snapshot)  # type: ignore[no-untyped-call]


def test_the_file_is_a_pickle_that_the_viewer_can_read(traced: dict[str, Any], tmp_path: Path) -> None:
    """Protocol 4, and only the opcodes of its own unpickler: plain lists, dictionaries, strings and numbers."""
    path = write_snapshot(tmp_path / "deep", "baseline", traced, set())
    assert path == tmp_path / "deep" / "baseline.pickle"
    found = {(opcode.name, argument) for opcode, argument, _ in pickletools.genops(path.read_bytes())}
    assert ("PROTO", 4) in found
    assert {name for name, _ in found} <= set(_VIEWER_KNOWS.split())


def test_frames_are_innermost_first_with_the_operation_on_top(traced: dict[str, Any]) -> None:
    """The viewer shows the first frame on top: the operation, then the line that asked for it."""
    stacks = [event["frames"] for event in traced["device_traces"][0] if event["size"] == 2000]
    assert stacks[0][0]["name"] == "aten.ones"
    assert stacks[0][1]["filename"] == __file__


def test_names_of_any_kind_give_files_and_none_replaces_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 characters, slashes, a name used twice, and workers that share a folder."""
    taken: set[Path] = set()
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    paths = [
        write_snapshot(tmp_path, name, {}, taken)
        for name in ("x" * 300, "x" * 299 + "y", "../up/a[1]::b", "a", "a", "", "...", "漢" * 90, "\ud800" + "x" * 300)
    ]
    assert len({*paths}) == len(paths) == len(list(tmp_path.iterdir()))
    assert max(len(path.name.encode()) for path in paths) < 130
    assert all(path.parent == tmp_path for path in paths)
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw1")
    assert write_snapshot(tmp_path, "a", {}, set()).name == "a-gw1.pickle"
