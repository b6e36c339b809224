"""Bytes of real tensors on the CPU, by storage: the same work would request as many of a GPU's allocator."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import torch

from vram.meters.base import unknown_device
from vram.torch_hooks.dispatch import Following
from vram.torch_hooks.storages import LivingStorages, has_bytes, living_tensors, storages_of
from vram.torch_hooks.watchers import hooked

_CPU = torch.device("cpu")


class TensorMeter:
    """Live and peak bytes of CPU tensor storages. requested = allocated: there are no blocks here.

    A storage counts once, however many tensors view it, from the operation that makes it (or first touches it) until
    its last owner lets go; tasks of asyncio, and threads that start while it or another meter watches, are followed to
    their end. Blind to: other threads (a pool's that started before) and those of no `threading.Thread`, until a
    followed thread touches what they made; scratch memory inside kernels (conv2d, half-precision matrix products,
    sort, the fused path of nn.TransformerEncoder); memory that is not a tensor's (Python objects, NumPy arrays of their
    own, storages without a tensor), or of a tensor that shows none (oneDNN's); other processes; work on other devices.
    What was hidden by `gc.freeze` when the meter started counts from its first use. Fake tensors and tensors that wrap
    others have no bytes of their own.
    """

    source = "CPU tensors"
    device = "cpu"
    exact = frozenset({"requested", "requested_peak", "allocated", "allocated_peak"})
    tolerance_bytes: Mapping[str, int] = {}
    facts: Mapping[str, object] = {}
    absent: Mapping[str, str] = {
        "reserved": "a CPU has no caching allocator",
        "driver": "a CPU has no driver that counts memory",
    }

    def __init__(self) -> None:
        self._living = LivingStorages[None](self._ended)
        self._live_bytes = self._peak_bytes = 0
        self._runs = False
        # Threads count here together; and counting may itself collect garbage, which ends storages.
        self._counting = threading.RLock()

    def __enter__(self) -> Self:
        with self.following():
            # The first operation in a dispatch mode imports much of torch: not while it is measured.
            torch.empty(0, device="cpu")
        self._live_bytes, self._runs = 0, True
        gc.collect()
        for tensor in living_tensors():
            self._see(storages_of(tensor), tensor)
        self.reset_peak()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._counting:
            self._runs = False  # for threads that go on
            self._living.clear()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow every operation of this thread, and of the threads that start meanwhile."""
        with hooked(self), self.following():
            yield

    def following(self) -> AbstractContextManager[object]:
        """Follow every operation of this thread alone."""
        following: AbstractContextManager[object] = Following(self._see, self._living.sizes)
        return following

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage changed its size without an operation."""
        if storage in self._living:
            self._see((storage,))

    def synchronize(self) -> None:
        """Nothing to wait for on a CPU."""

    def reset_peak(self) -> None:
        """Let the peak start again from what is alive now."""
        self._peak_bytes = self._live_bytes

    def read(self) -> dict[str, int]:
        """requested, requested_peak, allocated, allocated_peak; bytes."""
        live, peak = self._live_bytes, self._peak_bytes
        return {"requested": live, "requested_peak": peak, "allocated": live, "allocated_peak": peak}

    def _see(
        self, storages: Sequence[torch.UntypedStorage], tensor: Any = None, func: Any = None, made: bool = False
    ) -> None:
        """Count storages that are new, or the change of size of those resized in place."""
        for storage in storages:
            if storage.device == _CPU and has_bytes(storage):
                with self._counting:
                    if self._runs:
                        before = self._living.put(storage, None)
                        self._live_bytes += storage.nbytes() - (before[0] if before else 0)
                        if self._live_bytes > self._peak_bytes:
                            self._peak_bytes = self._live_bytes

    def _ended(self, n_bytes: int, _: None) -> None:
        with self._counting:
            self._live_bytes -= n_bytes


def resolve(device: str) -> str:
    """ "cpu": there is one."""
    if device != "cpu":
        raise unknown_device(device)
    return device


def meter(device: str) -> TensorMeter:
    """The meter of the CPU."""
    return TensorMeter()
