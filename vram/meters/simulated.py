"""What a simulated card's allocator says."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Self

from vram.simulated.context import SimulatedCuda


class SimulatedCudaMeter:
    """The figures of a `SimulatedCuda`: exact on every channel, with no GPU.

    Sees what PyTorch's allocator would be asked for by this thread and those started meanwhile. Blind to what the
    simulation does not model (see `vram.simulated.context`): scratch memory of kernels, other streams, the driver.
    """

    exact = frozenset({"requested", "requested_peak", "allocated", "allocated_peak", "reserved"})
    tolerance_bytes: Mapping[str, int] = {}
    absent: Mapping[str, str] = {"driver": "a simulated card has no driver"}

    def __init__(self, cuda: SimulatedCuda) -> None:
        self._cuda = cuda
        self.device = f"simulated:{cuda.card.name}"
        self.source = f"simulated CUDA allocator of {cuda.card}"

    @property
    def facts(self) -> dict[str, object]:
        """The card, and that the allocator's settings are the default ones."""
        card = self._cuda.card
        major, minor = card.compute_capability
        return {
            "device": f"simulated {card.name}",
            "device_bytes": card.total_bytes - card.context_bytes,
            "compute_capability": f"{major}.{minor}",
            "allocator": "default",
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """What is alive stays so."""

    def watching(self) -> AbstractContextManager[object]:
        """Work inside runs on the simulated card."""
        return self._cuda

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def reset_peak(self) -> None:
        """Let the peaks start again from what is alive now."""
        self._cuda.allocator.reset_peak()

    def read(self) -> dict[str, int]:
        """requested, requested_peak, allocated, allocated_peak, reserved; bytes."""
        stats = self._cuda.allocator.stats
        return {
            "requested": stats.requested_bytes.current,
            "requested_peak": stats.requested_bytes.peak,
            "allocated": stats.allocated_bytes.current,
            "allocated_peak": stats.allocated_bytes.peak,
            "reserved": stats.reserved_bytes.current,
        }
