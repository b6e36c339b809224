"""The allocator of a simulated card."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Self

from vram.cards import find_card
from vram.simulated.context import SimulatedCuda, simulated_cuda
from vram.simulated.remarks import Remarks

_LARGE_CARD = "A100-80"


class SimulatedCudaMeter:
    """The figures of a `SimulatedCuda`: exact on every channel, with no GPU.

    Sees every request to PyTorch's allocator by this thread and those started meanwhile. Blind to what the
    simulation does not model (see `vram.simulated.context`): scratch memory of kernels, CUDA graphs, the driver. Its
    peaks are its own while it runs: those of `torch.cuda` may be reset by another meter, or by the measured work.
    """

    exact = frozenset({"requested", "requested_peak", "allocated", "allocated_peak", "reserved"})
    tolerance_bytes: Mapping[str, int] = {}
    absent: Mapping[str, str] = {"driver": "a simulated card has no driver"}

    def __init__(self, cuda: SimulatedCuda) -> None:
        self._cuda = cuda
        self._earlier: dict[str, int] = {}  # peaks from before somebody else's reset
        self._remarks, self._noting = Remarks(), ExitStack()
        self.device = f"simulated:{cuda.card.name}"
        self.source = f"simulated CUDA allocator of {cuda.card}"

    @property
    def facts(self) -> dict[str, object]:
        """The card and the allocator's settings."""
        card = self._cuda.card
        major, minor = card.compute_capability
        return {
            "device": f"simulated {card.name}",
            "device_bytes": card.total_bytes - card.context_bytes,
            "compute_capability": f"{major}.{minor}",
            "allocator": str(self._cuda.allocator.settings),
        }

    def __enter__(self) -> Self:
        self._earlier = {}
        self._cuda.allocator.before_reset.append(self._keep_peaks)
        self._remarks = self._noting.enter_context(self._cuda.remarking())
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Leave the simulation; tensors that are alive stay so."""
        self._cuda.allocator.before_reset.remove(self._keep_peaks)
        self._noting.close()

    def watching(self) -> AbstractContextManager[object]:
        """Work inside runs on the simulated card."""
        return self._cuda

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def reset_peak(self) -> None:
        """Let the peaks start again from what is alive now."""
        self._cuda.allocator.reset_peak()
        self._earlier = {}

    def read(self) -> dict[str, int]:
        """requested, requested_peak, allocated, allocated_peak, reserved; bytes."""
        stats = self._cuda.allocator.stats
        return {
            "requested": stats.requested_bytes.current,
            "requested_peak": max(stats.requested_bytes.peak, self._earlier.get("requested_peak", 0)),
            "allocated": stats.allocated_bytes.current,
            "allocated_peak": max(stats.allocated_bytes.peak, self._earlier.get("allocated_peak", 0)),
            "reserved": stats.reserved_bytes.current,
        }

    def remarks(self, peak_bytes: int) -> tuple[str, ...]:
        """Lines on what was assumed since it was entered, and whose memory may make that peak higher."""
        return self._remarks.lines(peak_bytes)

    def _keep_peaks(self) -> None:
        self._earlier = self.read()


def resolve(device: str) -> str:
    """ "simulated:CARD"; a large card where none is named. Raises ValueError for a card that is not known."""
    return f"simulated:{find_card(device.partition(':')[2] or _LARGE_CARD).name}"


def meter(device: str) -> SimulatedCudaMeter:
    """The meter of the one simulated card of that name in this process."""
    return SimulatedCudaMeter(simulated_cuda(device.partition(":")[2]))
