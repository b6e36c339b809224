"""Snapshot files that PyTorch's memory viewer (pytorch.org/memory_viz) opens, also for what was traced on a CPU.

The format is that of `torch.cuda.memory._dump_snapshot`: a pickled dictionary of segments (what is alive) and device
traces (what happened). Written, never read.
"""

from __future__ import annotations

import hashlib
import os
import pickle  # the viewer's format; only ever written
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vram.explanation.allocations import Allocation, Event
from vram.files import atomic_write
from vram.frames import Frame

_PROTOCOL = 4  # the viewer's own unpickler knows 2 to 4
_LONGEST_NAME = 100  # bytes; file systems take 255 with what follows


def viewer_snapshot(events: Iterable[Event], alive: Iterable[tuple[int, Allocation]]) -> dict[str, Any]:
    """The viewer's dictionary from a log (its oldest part may be missing) and (key, allocation) alive at its end.

    A CPU has no segments: storages are laid out in one, each in the place of a freed one of its size, else at the end.
    """
    log = [event for event in events if event.allocation.n_bytes > 0]
    living = {key: allocation for key, allocation in alive if allocation.n_bytes > 0}
    frames = _Frames()
    places = _Places()
    begun = {event.key for event in log if event.action == "alloc"}
    for event in log:
        if event.action == "free" and event.key not in begun:
            places.take(event.key, event.allocation.n_bytes)
    for key in living.keys() - begun:
        places.take(key, living[key].n_bytes)
    trace: list[dict[str, Any]] = []
    for event in log:
        size = event.allocation.n_bytes
        place = places.take(event.key, size) if event.action == "alloc" else places.free(event.key, size)
        actions = ("alloc",) if event.action == "alloc" else ("free_requested", "free_completed")
        stack = frames.of(event.allocation)
        trace += [{"action": name, "addr": place, "size": size, "stream": 0, "frames": stack} for name in actions]
    blocks = _blocks({places.of[key]: allocation for key, allocation in living.items()}, places.end, frames)
    used = sum(allocation.n_bytes for allocation in living.values())
    return {
        "segments": [_segment(blocks, places.end, used)] if blocks else [],
        "device_traces": [trace],
        "allocator_settings": {},
        "external_annotations": [],
    }


def _segment(blocks: list[dict[str, Any]], end: int, used: int) -> dict[str, Any]:
    return {
        "device": 0,
        "address": _Places.BASE,
        "total_size": end - _Places.BASE,
        "allocated_size": used,
        "active_size": used,
        "requested_size": used,
        "stream": 0,
        "segment_type": "large",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "blocks": blocks,
    }


def write_snapshot(folder: Path, name: str, snapshot: dict[str, Any], taken: set[Path]) -> Path:
    """Write `snapshot` to a file of `folder` called after `name`, and add it to `taken`, of which none is replaced.

    Names of any length and with any character give a file. Raises OSError where nothing can be written.
    """
    stem = re.sub(r"[^\w.=-]+", "-", name).strip("-.") or "recording"
    if len(stem.encode()) > _LONGEST_NAME:
        begin = stem.encode()[:_LONGEST_NAME].decode(errors="ignore")
        stem = f"{begin}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"
    worker = os.environ.get("PYTEST_XDIST_WORKER")  # workers share the folder, and not `taken`
    stem = f"{stem}-{worker}" if worker else stem
    path, number = folder / f"{stem}.pickle", 1
    while path in taken:
        number += 1
        path = folder / f"{stem}-{number}.pickle"
    folder.mkdir(parents=True, exist_ok=True)
    dump_snapshot(path, snapshot)
    taken.add(path)
    return path


def dump_snapshot(path: Path, snapshot: dict[str, Any]) -> None:
    """Write `snapshot` to `path`, whole or not at all. Raises OSError where it can't be written."""
    atomic_write(path, pickle.dumps(snapshot, protocol=_PROTOCOL))


class _Places:
    """Addresses in a segment that grows at its end."""

    BASE = 2**20  # not 0, which viewers show as no address

    def __init__(self) -> None:
        self.of: dict[int, int] = {}
        self.end = self.BASE
        self._freed: dict[int, list[int]] = defaultdict(list)

    def take(self, key: int, size: int) -> int:
        if self._freed[size]:
            self.of[key] = self._freed[size].pop()
        else:
            self.of[key] = self.end
            self.end += size
        return self.of[key]

    def free(self, key: int, size: int) -> int:
        self._freed[size].append(self.of[key])
        return self.of[key]


class _Frames:
    """Stacks as the viewer wants them. The same stack is the same list, so that a pickle holds it once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[Frame, ...]], list[dict[str, Any]]] = {}

    def of(self, allocation: Allocation) -> list[dict[str, Any]]:
        key = (allocation.op, allocation.frames)
        if key not in self._known:
            frames = [{"filename": f.filename, "line": f.line, "name": f.name} for f in allocation.frames]
            if allocation.op:
                frames.insert(0, {"filename": "torch", "line": 0, "name": allocation.op})
            self._known[key] = frames
        return self._known[key]


def _blocks(living: dict[int, Allocation], end: int, frames: _Frames) -> list[dict[str, Any]]:
    """Blocks from the segment's first byte to its last: those in use, and the gaps between them."""
    blocks: list[dict[str, Any]] = []
    address = _Places.BASE
    for place, allocation in [*sorted(living.items(), key=lambda item: item[0]), (end, None)]:
        if place > address:
            gap = {"address": address, "size": place - address, "requested_size": 0, "state": "inactive", "frames": []}
            blocks.append(gap)
        if allocation is not None:
            size = allocation.n_bytes
            sizes = {"address": place, "size": size, "requested_size": size}
            blocks.append({**sizes, "state": "active_allocated", "frames": frames.of(allocation)})
            address = place + size
    return blocks
