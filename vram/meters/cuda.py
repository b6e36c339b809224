"""The statistics of PyTorch's CUDA caching allocator."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch

from vram.meters.base import unknown_device

_MIB = 2**20
# Our channel -> the allocator's statistic. requested: the sizes of tensors; allocated: the blocks that hold them.
_STATISTICS = {
    "requested": ("requested_bytes", "current"),
    "requested_peak": ("requested_bytes", "peak"),
    "allocated": ("allocated_bytes", "current"),
    "allocated_peak": ("allocated_bytes", "peak"),
    "reserved": ("reserved_bytes", "current"),
}
_EXACT = ("requested", "requested_peak")
_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


class CudaMeter:
    """`torch.cuda.memory_stats_as_nested_dict` of a device. Sees every thread and stream of this process.

    For "cuda" the channels are the current device's; of each other device that holds something when the meter is made,
    "cuda:1 requested" and "cuda:1 requested_peak" are read too. For "cuda:1" that device alone is read. On ROCm the
    same counters are HIP's.

    Blind to: memory not taken through PyTorch's allocator (raw cudaMalloc, the CUDA context, NCCL), to other processes,
    and to the driver. `allocated` counts blocks, so reuse of a larger free block shifts it by less than 1 MiB;
    `reserved` moves by segments. The replay of a CUDA graph allocates nothing: what its private pool holds shows in
    `reserved`, its tensors in `requested` and the peaks only while it is captured. `torch.compile` compiles at the
    first call of a shape, and with `mode="reduce-overhead"` records graphs at the second: with one lap of warm-up the
    next lap may rise once. Workspaces of cuBLAS come from this allocator at the first use of a handle on a stream, and
    stay: warm-up too. The peaks are the allocator's, one for the whole process: this meter reads them before another
    one resets them. A reset by the measured work itself (`torch.cuda.reset_peak_memory_stats`) can't be known, and
    hides what was needed before it.
    """

    def __init__(self, device: str | torch.device = "cuda", *, allocator: Any = None) -> None:
        """`allocator` stands in for `torch.cuda` in tests."""
        self._cuda = torch.cuda if allocator is None else allocator
        parsed = torch.device(device)
        index = self._cuda.current_device() if parsed.index is None else parsed.index
        self._device = torch.device("cuda", index)
        self._others: list[torch.device] = [] if parsed.index is not None else self._in_use(besides=index)
        self.device = "cuda" if self._others else str(self._device)
        named = " and ".join(str(each) for each in (self._device, *self._others))
        self.source = f"{'CUDA' if torch.version.hip is None else 'ROCm'} allocator of {named}"
        self.exact = frozenset(_EXACT).union(f"{other} {channel}" for other in self._others for channel in _EXACT)
        self.tolerance_bytes: Mapping[str, int] = {
            "allocated": _MIB,
            "allocated_peak": _MIB,
            "reserved": 2 * _MIB,
        }
        self.absent: Mapping[str, str] = {}
        self._earlier: dict[str, int] = {}  # peaks from before another meter's reset

    def __enter__(self) -> Self:
        present = self._cuda.memory_stats_as_nested_dict(self._device)
        # requested_bytes is left out by some allocator back ends; say so rather than read 0.
        missing = {
            channel
            for channel, (kind, which) in _STATISTICS.items()
            if present and which not in present.get(kind, {}).get("all", {})
        }
        self.absent = dict.fromkeys(sorted(missing), "this allocator does not count it")
        self._read = {channel: key for channel, key in _STATISTICS.items() if channel not in missing}
        self._earlier = {}
        _running.append(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing was changed."""
        _running.remove(self)

    @property
    def facts(self) -> dict[str, object]:
        """The device, its size and compute capability, CUDA's or HIP's version, and the allocator's settings."""
        card = self._cuda.get_device_properties(self._device)
        return {
            "device": card.name,
            "device_bytes": card.total_memory,
            "compute_capability": f"{card.major}.{card.minor}",
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
            "allocator": allocator_settings(),
            "allocator_backend": self._cuda.get_allocator_backend(),
        }

    def watching(self) -> AbstractContextManager[object]:
        """The allocator counts by itself."""
        return nullcontext()

    def synchronize(self) -> None:
        """Wait for the device, and for the others."""
        for device in (self._device, *self._others):
            self._cuda.synchronize(device)

    def reset_peak(self) -> None:
        """Let the peaks start again from what is alive now. Other meters of this allocator keep theirs."""
        for meter in _running:
            if meter is not self and meter._cuda is self._cuda:
                meter._earlier = {name: value for name, value in meter.read().items() if name.endswith("_peak")}
        self._earlier = {}
        for device in (self._device, *self._others):
            self._cuda.reset_peak_memory_stats(device)

    def read(self) -> dict[str, int]:
        """requested, requested_peak, allocated, allocated_peak, reserved; bytes."""
        # Nested, since `memory_stats` sorts some 150 figures into one dictionary: most of a reading's cost.
        stats = self._cuda.memory_stats_as_nested_dict(self._device)
        figures = {channel: _figure(stats, *statistic) for channel, statistic in self._read.items()}
        for other in self._others:
            stats = self._cuda.memory_stats_as_nested_dict(other)
            figures |= {
                f"{other} {channel}": _figure(stats, *self._read[channel])
                for channel in _EXACT
                if channel in self._read
            }
        return {channel: max(value, self._earlier.get(channel, 0)) for channel, value in figures.items()}

    def _in_use(self, besides: int) -> list[torch.device]:
        """Other devices with something of this process on them. One without is left alone: waiting for it takes memory
        there."""
        others = [torch.device("cuda", index) for index in range(self._cuda.device_count()) if index != besides]
        return [device for device in others if reserved_bytes(self._cuda, device)]


_running: list[CudaMeter] = []


def reserved_bytes(cuda: Any, device: torch.device) -> int:
    """Bytes that the allocator reserves of the device now; `cuda` is `torch.cuda` or stands in for it."""
    return _figure(cuda.memory_stats_as_nested_dict(device), *_STATISTICS["reserved"])


def _figure(stats: Mapping[str, Any], kind: str, which: str) -> int:
    # Before the first allocation the statistics are empty, and that is what nothing looks like.
    return int(stats[kind]["all"][which]) if stats else 0


def allocator_settings() -> str:
    """The settings in force ("expandable_segments:True"), made in code or in the environment; "default" for none."""
    try:
        settings = torch._C._accelerator_getAllocatorSettings()
    except AttributeError:  # private, so it may go
        settings = ""
    settings = settings or next((os.environ[name] for name in _SETTINGS if os.environ.get(name)), "default")
    uncached = "PYTORCH_NO_CUDA_MEMORY_CACHING" in os.environ
    return f"{settings}, no caching" if uncached else settings


def resolve(device: str) -> str:
    """ "cuda" or "cuda:INDEX". Raises ValueError for a GPU that torch does not see."""
    _, colon, index = device.partition(":")
    if colon and not index.isdigit():
        raise unknown_device(device)
    if not torch.cuda.is_available():
        raise ValueError(f"device {device} needs a GPU, and torch sees none")
    if index and int(index) >= torch.cuda.device_count():
        raise ValueError(f"device {device} does not exist: torch sees {torch.cuda.device_count()}")
    return device


def meter(device: str) -> CudaMeter:
    """The meter of a GPU's allocator."""
    return CudaMeter(device)
