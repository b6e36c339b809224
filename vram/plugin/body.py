"""The body of one marked test, measured: its peak, what it leaves behind, and who keeps that."""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from vram.explanation.allocations import BEFORE, Allocation
from vram.explanation.body import LinedTensorMeter, body_in_pieces
from vram.explanation.failures import attempt
from vram.explanation.holders import holders
from vram.explanation.peak import breakdown_lines
from vram.explanation.tracer import TensorTracer, tracer_for
from vram.meters import default_meter, torch_device
from vram.plugin.markers import MarkerLimits
from vram.replaying.collector import unfrozen
from vram.replaying.measurement import measured_by
from vram.simulated.context import simulated_cuda
from vram.summary.at_peak import peak_lines
from vram.summary.breakdown import Breakdown
from vram.torch_hooks.storages import has_bytes, living_tensors, storages_of
from vram.units import format_bytes

_RUNNER = f"{os.sep}_pytest{os.sep}"  # in the names of pytest's own files
_ONCE = "the body of a test runs once, and hooks on its modules could change what it does"
_MOST_LINES = 8  # of code, at the peak
_MOMENT_SECONDS = 0.02
_MOST_KINDS = 3  # of tensors


@dataclass
class MeasuredBody:
    """Bytes above those alive when the body began; None until it has ended well. `kept_bytes` is for leak_free alone.

    Negative `kept_bytes` were alive before and are not any more. `kept` names the tensors, where too many were kept.
    `nothing_allocated`: nothing was taken or given back on the device. `at_peak` has lines on what was alive at a peak
    over the limit, or at any that is looked into, and `breakdown` has it in pieces; `absent` says what nobody could
    look into, and why. `remarks` are the meter's on the peak.
    """

    peak_bytes: int | None = None
    kept_bytes: int | None = None
    kept: list[str] = field(default_factory=list)
    nothing_allocated: bool = False
    at_peak: list[str] = field(default_factory=list)
    remarks: tuple[str, ...] = ()
    breakdown: Breakdown | None = None
    absent: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def measured(
    limits: MarkerLimits, device: str, let_go: Callable[[], None], *, broken_down: bool = False
) -> Iterator[MeasuredBody]:
    """Measure the block as `limits` need it. `let_go` drops what the test runner itself keeps of the body.

    `broken_down`: what the peak consists of is needed though the limits are kept, as where it is compared.

    A body that itself resets the peak statistics of a real GPU hides what it needed before that.
    """
    body = MeasuredBody()
    leaks = limits.allow_bytes is not None
    if device != "cpu":  # whose meter collects when it starts
        gc.collect()
    if leaks:
        _clear_workspaces(device)
    before = Leftovers(device) if leaks else None
    followed = limits.limit_bytes is not None or broken_down
    lined = LinedTensorMeter(_RUNNER) if followed and device == "cpu" else None
    tracer = tracer_for(device) if followed and device.startswith("simulated") else None
    with measured_by(lined or default_meter(device)) as measurement:
        with tracer or nullcontext(), tracer.watching(0) if tracer else nullcontext():
            yield body
        peak_bytes = measurement.peak_bytes - measurement.before_bytes
        if broken_down or (limits.limit_bytes is not None and peak_bytes > limits.limit_bytes):
            made = _made(lined or tracer)
            body.at_peak = _at_peak(made, measurement.before_bytes)
            body.breakdown, body.absent = _in_pieces(made, peak_bytes)
        if before is not None:
            _clear_workspaces(device)
            gc.collect()
            if measurement.live_bytes - measurement.before_bytes > (limits.allow_bytes or 0):
                time.sleep(_MOMENT_SECONDS)  # a worker thread hands its result over before it lets go of it
                let_go()
                gc.collect()
    body.peak_bytes = measurement.peak_bytes - measurement.before_bytes
    body.nothing_allocated, body.remarks = measurement.nothing_allocated, measurement.remarks
    if before is not None:
        body.kept_bytes = measurement.live_bytes - measurement.before_bytes
        if body.kept_bytes > (limits.allow_bytes or 0):
            body.kept = before.lines()


def _made(followed: LinedTensorMeter | TensorTracer | None) -> list[Allocation] | None:
    """Allocations of the body that were alive at its peak. None on a real GPU, where the body is not followed: nothing
    may slow down what it measures."""
    return None if followed is None else [one for one in followed.at_peak() if one.run != BEFORE and one.n_bytes]


def _in_pieces(made: list[Allocation] | None, peak_bytes: int) -> tuple[Breakdown | None, Mapping[str, str]]:
    """The peak in pieces, and why there is none, or what its pieces do not say."""
    if made is None:
        return None, {"breakdown": "following a test on a GPU would slow down what it measures"}
    found = body_in_pieces(made, peak_bytes)
    if found is None:
        return None, {"breakdown": "something that was alive before the test ended during it"}
    return found, dict.fromkeys(("modules", "categories"), _ONCE)


def _at_peak(made: list[Allocation] | None, before_bytes: int) -> list[str]:
    """Lines on what was alive."""
    besides = f"besides {format_bytes(before_bytes)} that was alive before the test" if before_bytes else ""
    if made is None:
        return [f"  {besides}"] if besides else []
    title = ", ".join(filter(None, ["alive at the peak", besides]))
    return [f"  {title}:", *(f"  {line}" for line in peak_lines(breakdown_lines([made]), _MOST_LINES))]


class Leftovers:
    """Remembers the storages alive now on `device`; `lines` names those that are alive then and were not. Keeps none.

    Sees what Python's collector sees: a storage that only native code keeps is not named.
    """

    def __init__(self, device: str) -> None:
        self._device, self._fake = torch_device(device), device.startswith("simulated")
        # Weak references: the address of a storage is used again after its end.
        self._before = {address: weakref.ref(storage) for address, (storage, _) in self._storages().items()}

    def lines(self) -> list[str]:
        """ "2 float32 [256], 2.00 KiB, held by: list `KEPT`, ...": kinds of tensors by bytes, most first."""
        ranked = sorted(
            ((sum(size for size, _ in storages), what, storages) for what, storages in self._kinds().items()),
            key=lambda kind: -kind[0],
        )
        kept = ranked[:_MOST_KINDS]
        with unfrozen():
            words, error = attempt(lambda: holders([storages[0][1]() for _, _, storages in kept]))
        if words is None:
            words = [f"not known: {error}"] * len(kept)
        lines = [
            f"  {len(storages)} {what}, {format_bytes(size)}, held by: {held_by}"
            for (size, what, storages), held_by in zip(kept, words, strict=True)
        ]
        if len(ranked) > _MOST_KINDS:
            rest = sum(size for size, _, _ in ranked[_MOST_KINDS:])
            lines.append(f"  and {format_bytes(rest)} in tensors of {len(ranked) - _MOST_KINDS} more kinds")
        return lines

    def _kinds(self) -> dict[str, list[tuple[int, weakref.ref[Any]]]]:
        """Bytes and storages of what is alive and was not, by dtype and shape."""
        # Weak references: a list of ours would be named as the holder.
        kinds: dict[str, list[tuple[int, weakref.ref[Any]]]] = defaultdict(list)
        for address, (storage, what) in self._storages().items():
            known = self._before.get(address)
            if known is None or known() is not storage:
                kinds[what].append((storage.nbytes(), weakref.ref(storage)))
        return kinds

    def _storages(self) -> dict[int, tuple[Any, str]]:
        return _storages(self._device, fake=self._fake)


def _storages(device: torch.device, *, fake: bool) -> dict[int, tuple[Any, str]]:
    """Storages by address, with the dtype and shape of the largest tensor on each. `fake` ones are on no device."""
    storages: dict[int, tuple[Any, str]] = {}
    largest: dict[int, int] = {}
    # A subclass answers by code of its own, which may raise.
    with torch._C.DisableTorchFunctionSubclass():
        for tensor in living_tensors():
            if tensor.device.type != device.type or device.index not in (None, tensor.device.index):
                continue
            for storage in storages_of(tensor):
                size, what = _described(tensor)
                if size > largest.get(storage._cdata, -1) and (fake or has_bytes(storage)):
                    largest[storage._cdata], storages[storage._cdata] = size, (storage, what)
    return storages


def _described(tensor: torch.Tensor) -> tuple[int, str]:
    """Elements, and dtype and shape."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    try:
        return tensor.numel(), f"{dtype} {list(tensor.shape)}"
    except RuntimeError:  # nested: of several shapes
        return 0, f"{dtype} of several shapes"


def _clear_workspaces(device: str) -> None:
    """cuBLAS keeps a workspace for every handle and stream that was ever used: no test's own, and no leak."""
    if device.startswith("cuda") and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch._C._cuda_clearCublasWorkspaces()
    if device.startswith("simulated"):
        simulated_cuda(device.partition(":")[2]).clear_workspaces()
