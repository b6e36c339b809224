"""Main memory that the operating system counts for this process."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

_LEAST_TOLERANCE_BYTES = 16 * 2**20
_IDLE_READINGS = 10
_PAUSE_SECONDS = 0.002


class HostMeter:
    """Resident bytes (RSS) of this process, through psutil: copies kept on the CPU show here. Noisy: it never decides.

    Judged with a tolerance of 16 MiB, or three times what the figure moves by while nothing is done. Blind to: child
    processes (workers of a DataLoader), swapped pages, and who holds what; the C library keeps freed pages for itself.
    Pages of a mapped file (weights of safetensors) count once they are touched.
    """

    source = "RSS of this process"
    device = "cpu"
    exact: frozenset[str] = frozenset()
    facts: Mapping[str, object] = {}

    def __init__(self, *, process: Any = None) -> None:
        """`process` stands in for `psutil.Process()` in tests."""
        self.tolerance_bytes: Mapping[str, int] = {"host": _LEAST_TOLERANCE_BYTES}
        self.absent: Mapping[str, str] = {}
        self._process = process
        if process is None:
            try:
                import psutil
            except ImportError:
                self.absent = {"host": "psutil is not installed"}
            else:
                self._process = psutil.Process()

    def __enter__(self) -> Self:
        if self._process is not None:
            idle = [self._rss() for _ in range(_IDLE_READINGS)]
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
        return {} if self._process is None else {"host": int(self._process.memory_info().rss)}

    def _rss(self) -> int:
        time.sleep(_PAUSE_SECONDS)
        return int(self._process.memory_info().rss)


def meter(device: str) -> HostMeter:
    """The meter of main memory, whichever device is measured."""
    return HostMeter()
