"""The body of one marked test, measured: its peak, what it leaves behind, and who keeps that."""

from __future__ import annotations

import gc
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from vram.holders import holder, unfrozen
from vram.markers import Wanted
from vram.measuring import measure
from vram.meters import torch_device
from vram.units import format_bytes

_TOLD = 3  # kinds of tensors: each holder is a search through every object of the process


@dataclass
class Body:
    """Bytes above what was alive when the body began; there once it has ended well. `kept_bytes` is of leak_free alone.

    Negative `kept_bytes` were alive before and are not any more. `kept` tells of the tensors, where too many were kept.
    """

    peak_bytes: int | None = None
    kept_bytes: int | None = None
    kept: list[str] = field(default_factory=list)


@contextmanager
def measured(asked: Wanted, device: str, let_go: Callable[[], None]) -> Iterator[Body]:
    """Measure the block for what `asked` needs. `let_go` drops what the test runner itself keeps of the body.

    A body that resets the peak statistics of its device hides what it needed before that.
    """
    body = Body()
    leaks = asked.allow_bytes is not None
    if device != "cpu":  # whose meter collects when it starts
        gc.collect()
    if leaks:
        _clear_workspaces(device)
    before = Leftovers(device) if leaks else None
    with measure(device) as measurement:
        yield body
        if before is not None:
            _clear_workspaces(device)
            gc.collect()
            if measurement.live_bytes - measurement.before_bytes > (asked.allow_bytes or 0):
                let_go()
                gc.collect()
    body.peak_bytes = measurement.peak_bytes - measurement.before_bytes
    if before is not None:
        body.kept_bytes = measurement.live_bytes - measurement.before_bytes
        if body.kept_bytes > (asked.allow_bytes or 0):
            body.kept = before.lines()


class Leftovers:
    """Remembers the storages alive now on `device`; `lines` tells of those alive then that were not. Keeps none alive.

    Sees what Python's collector sees: a storage that only native code keeps is not named.
    """

    def __init__(self, device: str) -> None:
        self._device = torch_device(device)
        # By weak reference: the address of a storage is used again after its end.
        self._before = {address: weakref.ref(storage) for address, (storage, _) in _storages(self._device).items()}

    def lines(self) -> list[str]:
        """ "2 float32 [256], 2.00 KiB, held by: list `KEPT`, ...": kinds of tensors by bytes, most first."""
        kinds: dict[str, list[Any]] = defaultdict(list)
        for address, (storage, what) in _storages(self._device).items():
            known = self._before.get(address)
            if known is None or known() is not storage:
                kinds[what].append(storage)
        ranked = sorted(kinds.items(), key=lambda kind: -sum(storage.nbytes() for storage in kind[1]))
        told = []
        for what, storages in ranked[:_TOLD]:
            size = format_bytes(sum(storage.nbytes() for storage in storages))
            with unfrozen():
                told.append(f"  {len(storages)} {what}, {size}, held by: {holder(storages[0])}")
        if len(ranked) > _TOLD:
            rest = sum(storage.nbytes() for _, storages in ranked[_TOLD:] for storage in storages)
            told.append(f"  and {format_bytes(rest)} in tensors of {len(ranked) - _TOLD} more kinds")
        return told


def _storages(device: torch.device) -> dict[int, tuple[Any, str]]:
    """Storages by address, with the dtype and shape of the largest tensor on each."""
    storages: dict[int, tuple[Any, str]] = {}
    largest: dict[int, int] = {}
    objects = gc.get_objects()
    # By type: isinstance would run the __class__ property of any lazy proxy, and take much longer.
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, torch.Tensor)}
    for tensor in [found for found in objects if type(found) in kinds]:
        if tensor.device.type != device.type or device.index not in (None, tensor.device.index):
            continue
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            continue  # sparse, or a wrapper: no storage of its own
        address = storage._cdata
        if tensor.numel() > largest.get(address, -1):
            largest[address] = tensor.numel()
            storages[address] = (storage, f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}")
    return storages


def _clear_workspaces(device: str) -> None:
    """cuBLAS keeps a workspace for every handle and stream that was ever used: no test's own, and no leak."""
    if device.startswith("cuda") and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch._C._cuda_clearCublasWorkspaces()
