"""Meters: the interface of every one, and the registry of those that read each kind of device."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    import torch

# For each kind of device: the files of this folder whose meters a replay reads, the one that decides first. Each has
# `meter(device)`, and the first of a kind `resolve(device)`: the device's full name, or ValueError where it is not
# there. They are imported when a device of theirs is measured: importing vram imports no torch.
METERS: dict[str, tuple[str, ...]] = {
    "cpu": ("tensor", "host"),
    "cuda": ("cuda", "nvml", "host"),
    "mps": ("accelerator", "host"),
    "simulated": ("simulated",),  # the host's memory is not what the card's would be
    "xpu": ("accelerator", "host"),
}


class Meter(Protocol):
    """Reads channels (absolute bytes) from one source. Used as a context manager around a whole replay.

    `source` names it in reports; `device` is where what it counts lives, as `resolve_device` names it ("cuda": several
    of them); `exact` are the channels that give the same bytes on every replay; `tolerance_bytes`
    holds the others' granule; `absent` maps channels it should read but cannot to the reason; `facts` describes the
    device it reads, for the environment of a recording.

    A channel whose figures turn out not to be trusted is left out by `read` from then on, and `absent` says why: a
    replay then drops all of that channel's figures.

    A meter whose figures are worth a remark has a method `remarks(peak_bytes)` besides; see `remarks_of`.
    """

    source: str
    device: str
    exact: frozenset[str]
    tolerance_bytes: Mapping[str, int]
    absent: Mapping[str, str]

    @property
    def facts(self) -> Mapping[str, object]:
        """Ready for JSON; read while the meter runs."""
        ...

    def __enter__(self) -> Self:
        """Start: find what is alive already."""
        ...

    def __exit__(self, *exc_info: object) -> None:
        """Stop, and leave no trace."""
        ...

    def watching(self) -> AbstractContextManager[object]:
        """The context that the measured work must run in."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        ...

    def reset_peak(self) -> None:
        """Let peaks start again from what is alive now; those of other meters that run go on."""
        ...

    def read(self) -> dict[str, int]:
        """Bytes by channel, now."""
        ...


def remarks_of(meter: Meter, peak_bytes: int) -> tuple[str, ...]:
    """Lines that go with a peak of `peak_bytes` requested, which this meter read: what it assumes, or can't count."""
    remarks = getattr(meter, "remarks", None)
    return () if remarks is None else remarks(peak_bytes)


def resolve_device(device: str = "auto") -> str:
    """The device's full name: "cpu", "cuda", "cuda:INDEX", "mps", "simulated:CARD", "xpu" or "xpu:INDEX".

    "auto" is CUDA where there is one, else the CPU; "simulated" is a large card.

    Raises ValueError for what is not there.
    """
    import torch  # late: importing vram imports no torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.partition(":")[0]
    if kind not in METERS:
        raise unknown_device(device)
    resolved: str = _modules(kind)[0].resolve(device)
    return resolved


def unknown_device(device: str) -> ValueError:
    """The error for a device whose name is none that can be measured."""
    *kinds, last = METERS
    names = f"auto, {', '.join(kinds)} or {last}"
    return ValueError(f"device must be {names}, as in cuda:INDEX and simulated:CARD where one is meant, got {device!r}")


def torch_device(device: str) -> torch.device:
    """The torch device of tensors on a device named as in `resolve_device`."""
    import torch  # late: as above

    return torch.device("cuda", 0) if device.startswith("simulated") else torch.device(device)


def default_meter(device: str = "auto") -> Meter:
    """The meter that decides for a device, named as in `resolve_device`."""
    resolved = resolve_device(device)
    meter: Meter = _modules(resolved.partition(":")[0])[0].meter(resolved)
    return meter


def default_meters(device: str = "auto") -> list[Meter]:
    """The meters that a replay reads: the one that decides, first; on CUDA the driver's count; the host's memory."""
    resolved = resolve_device(device)
    return [module.meter(resolved) for module in _modules(resolved.partition(":")[0])]


def _modules(kind: str) -> list[Any]:
    return [import_module(f"vram.meters.{name}") for name in METERS[kind]]
