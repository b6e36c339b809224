"""What PyTorch's CUDA caching allocator says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import torch

_MIB = 2**20
# Our channel -> the allocator's statistic. requested: what tensors asked for; allocated: the blocks that hold them.
_STATISTICS = {
    "requested": "requested_bytes.all.current",
    "requested_peak": "requested_bytes.all.peak",
    "allocated": "allocated_bytes.all.current",
    "allocated_peak": "allocated_bytes.all.peak",
    "reserved": "reserved_bytes.all.current",
}


class CudaMeter:
    """`torch.cuda.memory_stats` of one device. Sees every thread and stream of this process.

    Blind to: memory not taken through PyTorch's allocator (raw cudaMalloc, the CUDA context, NCCL), to other processes,
    and to the driver. `allocated` counts blocks, so reuse of a larger free block shifts it by less than 1 MiB;
    `reserved` moves by segments.
    """

    exact = frozenset({"requested", "requested_peak"})
    tolerance_bytes: Mapping[str, int] = {"allocated": _MIB, "allocated_peak": _MIB, "reserved": 2 * _MIB}

    def __init__(self, device: str | torch.device = "cuda", *, allocator: Any = None) -> None:
        """`allocator` stands in for `torch.cuda` in tests."""
        self._allocator = torch.cuda if allocator is None else allocator
        parsed = torch.device(device)
        index = self._allocator.current_device() if parsed.index is None else parsed.index
        self._device = torch.device("cuda", index)
        self.source = f"CUDA allocator of {self._device}"
        self.absent: Mapping[str, str] = {"driver": "no meter reads the driver yet"}

    def __enter__(self) -> Self:
        present = self._allocator.memory_stats(self._device)
        # requested_bytes is left out by some allocator back ends; say so rather than read 0.
        missing = {channel for channel, statistic in _STATISTICS.items() if present and statistic not in present}
        self.absent = {**self.absent, **dict.fromkeys(sorted(missing), "this allocator does not count it")}
        self._read = {channel: key for channel, key in _STATISTICS.items() if channel not in missing}
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing was changed."""

    def watching(self) -> AbstractContextManager[object]:
        """The allocator counts by itself."""
        return nullcontext()

    def synchronize(self) -> None:
        """Wait for the device."""
        self._allocator.synchronize(self._device)

    def reset_peak(self) -> None:
        """Let the peaks start again from what is alive now."""
        self._allocator.reset_peak_memory_stats(self._device)

    def read(self) -> dict[str, int]:
        """requested, requested_peak, allocated, allocated_peak, reserved; bytes."""
        stats = self._allocator.memory_stats(self._device)
        # Before the first allocation the statistics are empty, and that is what nothing looks like.
        return {channel: int(stats.get(key, 0)) for channel, key in self._read.items()}
