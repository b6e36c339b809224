"""What every meter offers, and which ones a device name means."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol, Self


class Meter(Protocol):
    """Reads channels (absolute bytes) from one source. Used as a context manager around a whole replay.

    `source` names it in reports; `exact` are the channels that give the same bytes on every replay; `tolerance_bytes`
    holds the others' granule; `absent` maps channels it should read but cannot to the reason; `facts` is what it knows
    of the device it reads, for the environment of a recording.

    A channel whose figures turn out not to be trusted is left out by `read` from then on, and `absent` says why: a
    replay then drops all of that channel's figures.
    """

    source: str
    exact: frozenset[str]
    tolerance_bytes: Mapping[str, int]
    absent: Mapping[str, str]

    @property
    def facts(self) -> Mapping[str, object]:
        """Ready for JSON; asked for while the meter runs."""
        ...

    def __enter__(self) -> Self:
        """Start: find what is alive already."""
        ...

    def __exit__(self, *exc_info: object) -> None:
        """Stop, and leave no trace."""
        ...

    def watching(self) -> AbstractContextManager[object]:
        """What must be active while the measured work runs."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        ...

    def reset_peak(self) -> None:
        """Let peaks start again from what is alive now."""
        ...

    def read(self) -> dict[str, int]:
        """Bytes by channel, now."""
        ...


def resolve_device(device: str = "auto") -> str:
    """ "cpu", "cuda" or "cuda:INDEX"; "auto" is CUDA where there is one. Raises ValueError for what is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    kind, colon, index = device.partition(":")
    if kind != "cuda" or (colon and not index.isdigit()):
        raise ValueError(f"device must be auto, cpu, cuda or cuda:INDEX, got {device!r}")
    if not torch.cuda.is_available():
        raise ValueError(f"device {device} needs a GPU, and torch sees none")
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"device {device} does not exist: torch sees {torch.cuda.device_count()}")
    return device


def default_meter(device: str = "auto") -> Meter:
    """The meter that decides for a device, named as in `resolve_device`."""
    resolved = resolve_device(device)
    if resolved == "cpu":
        from vram.meters.tensor import TensorMeter

        return TensorMeter()
    from vram.meters.cuda import CudaMeter

    return CudaMeter(resolved)


def default_meters(device: str = "auto") -> list[Meter]:
    """What a replay reads: the meter that decides, first; on CUDA the driver's count; the host's memory."""
    from vram.meters.host import HostMeter

    deciding = default_meter(device)
    if resolve_device(device) == "cpu":
        return [deciding, HostMeter()]
    from vram.meters.nvml import NvmlMeter

    return [deciding, NvmlMeter(resolve_device(device)), HostMeter()]
