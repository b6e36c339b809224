"""What every meter offers, and which ones a device name means."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    import torch

_LARGE_CARD = "A100-80"


class Meter(Protocol):
    """Reads channels (absolute bytes) from one source. Used as a context manager around a whole replay.

    `source` names it in reports; `device` is where what it counts lives, as `resolve_device` names it ("cuda": several
    of them); `exact` are the channels that give the same bytes on every replay; `tolerance_bytes`
    holds the others' granule; `absent` maps channels it should read but cannot to the reason; `facts` is what it knows
    of the device it reads, for the environment of a recording.

    A channel whose figures turn out not to be trusted is left out by `read` from then on, and `absent` says why: a
    replay then drops all of that channel's figures.
    """

    source: str
    device: str
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
        """Let peaks start again from what is alive now; those of other meters that run go on."""
        ...

    def read(self) -> dict[str, int]:
        """Bytes by channel, now."""
        ...


def resolve_device(device: str = "auto") -> str:
    """ "cpu", "cuda", "cuda:INDEX" or "simulated:CARD"; "auto" is CUDA where there is one, "simulated" a large card.

    Raises ValueError for what is not there.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] == "simulated":
        from vram.cards import find_card

        return f"simulated:{find_card(device.partition(':')[2] or _LARGE_CARD).name}"
    if device == "cpu":
        return device
    kind, colon, index = device.partition(":")
    if kind != "cuda" or (colon and not index.isdigit()):
        raise ValueError(f"device must be auto, cpu, cuda, cuda:INDEX, simulated or simulated:CARD, got {device!r}")
    if not torch.cuda.is_available():
        raise ValueError(f"device {device} needs a GPU, and torch sees none")
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"device {device} does not exist: torch sees {torch.cuda.device_count()}")
    return device


def torch_device(device: str) -> torch.device:
    """Where tensors of a device, named as in `resolve_device`, live."""
    import torch

    return torch.device("cuda", 0) if device.startswith("simulated") else torch.device(device)


def default_meter(device: str = "auto") -> Meter:
    """The meter that decides for a device, named as in `resolve_device`."""
    resolved = resolve_device(device)
    if resolved.startswith("simulated"):
        from vram.meters.simulated import SimulatedCudaMeter
        from vram.simulated.context import simulated_cuda

        return SimulatedCudaMeter(simulated_cuda(resolved.partition(":")[2]))
    if resolved == "cpu":
        from vram.meters.tensor import TensorMeter

        return TensorMeter()
    from vram.meters.cuda import CudaMeter

    return CudaMeter(resolved)


def default_meters(device: str = "auto") -> list[Meter]:
    """What a replay reads: the meter that decides, first; on CUDA the driver's count; the host's memory."""
    from vram.meters.host import HostMeter

    deciding = default_meter(device)
    if resolve_device(device).startswith("simulated"):
        return [deciding]  # the host's memory is not what the card's would be
    if resolve_device(device) == "cpu":
        return [deciding, HostMeter()]
    from vram.meters.nvml import NvmlMeter

    return [deciding, NvmlMeter(resolve_device(device)), HostMeter()]
