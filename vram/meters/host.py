"""Main memory that the operating system counts for this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Self

from vram.extras import remedy

_LEAST_TOLERANCE_BYTES = 16 * 2**20
_IDLE_READINGS = 10
_PAUSE_SECONDS = 0.002
_SHARED, _BLOCK_BYTES = Path("/dev/shm"), 512  # noqa: S108 - where Linux keeps shared memory; nothing is written
_OPEN, _MAPPED = Path("/proc/self/fd"), Path("/proc/self/maps")


class HostMeter:
    """Resident bytes (RSS) of this process, through psutil: copies kept on the CPU show here. Noisy: it never decides.

    On Linux with the shared memory that this process keeps open and has not mapped, which RSS leaves out: tensors in a
    queue of torch.multiprocessing that nobody reads. Judged with a tolerance of 16 MiB, or three times what the figure
    moves by while nothing is done. Blind to: child processes (workers of a DataLoader) and what they alone hold, shared
    memory without an open file or under torch's strategy "file_system" once it is unmapped, swapped pages, and who
    holds what; the C library keeps freed pages for itself. Pages of a mapped file (weights of safetensors) count once
    they are touched.
    """

    source = "RSS of this process"
    device = "cpu"
    exact: frozenset[str] = frozenset()
    facts: Mapping[str, object] = {}

    def __init__(self, *, process: Any = None, shared_bytes: Callable[[], int] | None = None) -> None:
        """`process` stands in for `psutil.Process()` in tests, which has no shared memory then but `shared_bytes`."""
        self.tolerance_bytes: Mapping[str, int] = {"host": _LEAST_TOLERANCE_BYTES}
        self.absent: Mapping[str, str] = {}
        self._process = process
        self._shared_bytes = shared_bytes or (unmapped_shared_bytes if process is None else lambda: 0)
        if process is None:
            try:
                import psutil
            except ImportError:
                self.absent = {"host": f"psutil is not installed ({remedy('meters')})"}
            else:
                self._process = psutil.Process()

    def __enter__(self) -> Self:
        if self._process is not None:
            idle = [self._idle_bytes() for _ in range(_IDLE_READINGS)]
            self.tolerance_bytes = {"host": max(_LEAST_TOLERANCE_BYTES, 3 * (max(idle) - min(idle)))}
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing was changed."""

    def watching(self) -> AbstractContextManager[object]:
        """The operating system counts by itself."""
        return nullcontext()

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def reset_peak(self) -> None:
        """There is no peak."""

    def read(self) -> dict[str, int]:
        """host; bytes."""
        return {} if self._process is None else {"host": self._resident_bytes()}

    def _resident_bytes(self) -> int:
        return int(self._process.memory_info().rss) + self._shared_bytes()

    def _idle_bytes(self) -> int:
        time.sleep(_PAUSE_SECONDS)
        return self._resident_bytes()


def unmapped_shared_bytes() -> int:
    """Bytes of shared memory that this process keeps open and has not mapped; 0 where /proc does not say."""
    try:
        device, descriptors = _SHARED.stat().st_dev, os.listdir(_OPEN)  # noqa: PTH208 - read after every sample
    except OSError:
        return 0
    sizes: dict[int, int] = {}  # by inode: several descriptors of one file are one
    for descriptor in descriptors:
        try:
            file = os.fstat(int(descriptor))
        except OSError:  # closed meanwhile
            continue
        if file.st_dev == device:
            sizes[file.st_ino] = file.st_blocks * _BLOCK_BYTES
    mapped = _mapped(device) if sizes else set()
    return sum(size for inode, size in sizes.items() if inode not in mapped)


def _mapped(device: int) -> set[int]:
    """Inodes of the files of a file system that this process has mapped: their pages are in its RSS."""
    place = f"{os.major(device):02x}:{os.minor(device):02x}"
    with _MAPPED.open(encoding="utf-8", errors="replace") as maps:
        fields = (line.split(maxsplit=5) for line in maps)
        return {int(field[4]) for field in fields if field[3] == place}


def meter(device: str) -> HostMeter:
    """The meter of main memory, whichever device is measured."""
    return HostMeter()
