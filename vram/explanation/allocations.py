"""Allocations as a trace knows them: size, operation, shape, line and run; and what was alive at a peak."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vram.frames import Frame, Stacks, telling_frame

if TYPE_CHECKING:
    import torch

BEFORE = -1  # the run of what was alive before the trace began


# Tuples, as a trace makes them at every operation: a frozen dataclass takes five times as long.
class Allocation(NamedTuple):
    """One storage. `frames` is the call stack, innermost first; `run` counts from 0, BEFORE for what was there already;
    `mark` is the last mark the sample had reached, as in "token 3"; `op` is "" where no operation was seen. `module` is
    the path of the module that ran, and `call` the number of that call; "" and 0 outside of modules, or where nobody
    looked. `workspace`: a library took it for itself, and no tensor has it."""

    n_bytes: int
    op: str
    shape: tuple[int, ...]
    dtype: str
    frames: tuple[Frame, ...]
    run: int
    mark: str = ""
    module: str = ""
    call: int = 0
    in_backward: bool = False
    workspace: bool = False

    @property
    def line(self) -> Frame | None:
        """The innermost frame outside torch, vram and the standard library; else the innermost; None without frames."""
        return telling_frame(self.frames)

    @property
    def caller(self) -> Frame | None:
        """The innermost frame of the project's own code, where `line` is a library's; else None."""
        if self.line is None or not self.line.installed:
            return None
        return next((frame for frame in self.frames if not frame.installed and not frame.internal), None)


class Event(NamedTuple):
    """A storage that began or ended. The same storage has the same `key`."""

    action: Literal["alloc", "free"]
    key: int
    allocation: Allocation


class Place(NamedTuple):
    """Where an operation runs: the path of the innermost module and the number of that call, ("", 0) outside; and
    whether the autograd engine runs it."""

    module: str = ""
    call: int = 0
    in_backward: bool = False


NOWHERE = Place()


def at_peak(start: Iterable[tuple[int, Allocation]], events: Iterable[Event]) -> list[Allocation]:
    """Allocations alive at the moment of most bytes, from (key, allocation) alive at the start and the events since."""
    return list(keyed_at_peak(start, events).values())


def keyed_at_peak(start: Iterable[tuple[int, Allocation]], events: Iterable[Event]) -> dict[int, Allocation]:
    """The same, by key."""
    log = list(events)
    alive = dict(start)
    total_bytes = peak_bytes = sum(allocation.n_bytes for allocation in alive.values())
    peak_at = 0
    for position, event in enumerate(log, start=1):
        total_bytes += event.allocation.n_bytes if event.action == "alloc" else -event.allocation.n_bytes
        if total_bytes > peak_bytes:
            peak_bytes, peak_at = total_bytes, position
    for event in log[:peak_at]:
        if event.action == "alloc":
            alive[event.key] = event.allocation
        else:
            alive.pop(event.key, None)
    return alive


def unclaimed(snapshot: dict[str, Any], device: int | None, pointers: set[int]) -> list[Allocation]:
    """Blocks of a CUDA snapshot in use on `device`, recorded with a stack, whose address is none of `pointers`."""
    allocations = []
    for segment in snapshot["segments"]:
        if device is not None and segment.get("device") != device:
            continue
        for block in segment["blocks"]:
            if block["state"] == "active_allocated" and block.get("frames") and block["address"] not in pointers:
                frames = tuple(Frame(frame["filename"], frame["line"], frame["name"]) for frame in block["frames"])
                size = block.get("requested_size", block["size"])
                allocations.append(Allocation(size, "", (), "", frames, run=0))
    return allocations


def described(
    op: str,
    tensor: torch.Tensor,
    n_bytes: int,
    frames: tuple[Frame, ...],
    run: int,
    mark: str = "",
    place: Place = NOWHERE,
) -> Allocation:
    """The allocation of a storage of the tensor, as an operation made it. A nested tensor has one size."""
    try:
        shape = tuple([int(size) for size in tensor.shape])
    except (AttributeError, RuntimeError):  # of several shapes: in either of PyTorch's layouts
        shape = (n_bytes // tensor.element_size(),)
    return Allocation(n_bytes, op, shape, _name_of(tensor.dtype), frames, run, mark, *place)


@functools.cache
def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class Describing:
    """Tags for the blocks of a simulated card: for each, the allocation with its stack."""

    def __init__(self) -> None:
        self._stacks = Stacks()

    def __call__(self, op: str, tensor: torch.Tensor) -> Allocation:
        """The allocation of the storage that the operation took for its result."""
        return described(op, tensor, tensor.untyped_storage().nbytes(), self._stacks.here(), 0)
