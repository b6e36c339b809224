"""The caching allocator of whichever accelerator PyTorch runs on, by the functions that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Self

import torch

from vram.meters.base import unknown_device

_MIB = 2**20
# Our channel -> the statistic. requested: the sizes of tensors; allocated: the blocks that hold them.
_STATISTICS = {
    "requested": "requested_bytes.all.current",
    "requested_peak": "requested_bytes.all.peak",
    "allocated": "allocated_bytes.all.current",
    "allocated_peak": "allocated_bytes.all.peak",
    "reserved": "reserved_bytes.all.current",
}
_REQUESTED = ("requested", "requested_peak")


class AcceleratorMeter:
    """`torch.accelerator.memory_stats` of a device: Intel's GPUs (XPU), and Apple's (MPS).

    Written from PyTorch's documentation and tested with a stand-in: it has not run on an XPU or an MPS device yet.

    A statistic that the allocator does not count is left out by PyTorch, or is 0 for ever: both are absent here, with
    the reason. Where that is `requested`, no channel is exact, and growth is inconclusive; `allocated_peak` can still
    be held to a budget. An allocator without statistics, as that of MPS was for long, leaves every channel absent.

    Blind to: memory not taken through PyTorch's allocator (the driver's context, oneDNN's and Metal's own buffers),
    other processes, other devices of the same kind, and the driver's count. `allocated` counts blocks, so reuse of a
    larger free block shifts it; `reserved` moves by segments. Peaks are the allocator's, one for the whole process:
    another meter's reset keeps them here, one by the measured work itself hides what it needed before.
    """

    exact = frozenset(_REQUESTED)
    tolerance_bytes: Mapping[str, int] = {"allocated": _MIB, "allocated_peak": _MIB, "reserved": 2 * _MIB}

    def __init__(self, device: str = "xpu", *, accelerator: Any = None) -> None:
        """`accelerator` stands in for `torch.accelerator` in tests."""
        self._accelerator = torch.accelerator if accelerator is None else accelerator
        parsed = torch.device(device)
        self._index = self._accelerator.current_device_index() if parsed.index is None else parsed.index
        self.device = f"{parsed.type}:{self._index}"
        self.source = f"{parsed.type.upper()} allocator of {self.device}"
        self.absent: Mapping[str, str] = {}
        self._earlier: dict[str, int] = {}  # peaks from before another meter's reset

    def __enter__(self) -> Self:
        self.absent, self._earlier = {"driver": "no meter reads this device's driver"}, {}
        self._stats()
        _running.append(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing was changed."""
        _running.remove(self)

    @property
    def facts(self) -> dict[str, object]:
        """The device, and its size where PyTorch knows it."""
        facts: dict[str, object] = {"device": self.device, "allocator": "default"}
        with suppress(AttributeError, RuntimeError):  # not every back end can say
            facts["device_bytes"] = self._accelerator.get_memory_info(self._index)[1]
        return facts

    def watching(self) -> AbstractContextManager[object]:
        """The allocator counts by itself."""
        return nullcontext()

    def synchronize(self) -> None:
        """Wait for the device."""
        self._accelerator.synchronize(self._index)

    def reset_peak(self) -> None:
        """Let the peaks start again from what is alive now. Other meters of this allocator keep theirs."""
        for meter in _running:
            if meter is not self and meter.device == self.device:
                meter._earlier = {name: value for name, value in meter.read().items() if name.endswith("_peak")}
        self._earlier = {}
        if self._stats() is not None:
            self._accelerator.reset_peak_memory_stats(self._index)

    def read(self) -> dict[str, int]:
        """requested, requested_peak, allocated, allocated_peak, reserved; bytes."""
        stats = self._stats()
        if stats is None:
            return {}
        # Before the first allocation the statistics are empty, and that is what nothing looks like.
        figures = {channel: int(stats.get(key, 0)) for channel, key in _STATISTICS.items()}
        if stats:
            missing = {channel for channel, key in _STATISTICS.items() if key not in stats}
            if figures["allocated"] and not figures["requested"]:
                missing |= {*_REQUESTED}
            self._lose(missing, "this allocator does not count it")
        return {
            channel: max(value, self._earlier.get(channel, 0))
            for channel, value in figures.items()
            if channel not in self.absent
        }

    def _stats(self) -> Mapping[str, Any] | None:
        """The statistics by name; None, and every channel absent, where this build of PyTorch has none."""
        try:
            stats: Mapping[str, Any] = self._accelerator.memory_stats(self._index)
        except (AttributeError, RuntimeError) as error:
            first = str(error).partition("\n")[0]
            self._lose(_STATISTICS, f"torch {torch.__version__} has no statistics of this allocator: {first}")
            return None
        return stats

    def _lose(self, channels: Any, reason: str) -> None:
        self.absent = {**dict.fromkeys(sorted(channels), reason), **self.absent}


_running: list[AcceleratorMeter] = []


def resolve(device: str) -> str:
    """ "xpu", "xpu:INDEX" or "mps". Raises ValueError where torch does not run on such an accelerator."""
    kind, colon, index = device.partition(":")
    if colon and not index.isdigit():
        raise unknown_device(device)
    current = torch.accelerator.current_accelerator(check_available=True)
    if current is None or current.type != kind:
        there = "none" if current is None else current.type
        raise ValueError(f"device {device} needs an accelerator of that kind, and torch sees {there}")
    if index and int(index) >= torch.accelerator.device_count():
        raise ValueError(f"device {device} does not exist: torch sees {torch.accelerator.device_count()}")
    return device


def meter(device: str) -> AcceleratorMeter:
    """The meter of an accelerator's allocator."""
    return AcceleratorMeter(device)
