"""Bytes of real tensors on the CPU, by storage: what the same work would ask of a GPU's allocator."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vram.torch_hooks.dispatch import hides_parts, hooked, in_parts

_ORDINARY = (torch.Tensor, torch.nn.Parameter)
_COMPRESSED_ROWS = ("crow_indices", "col_indices", "values")
_COMPRESSED_COLUMNS = ("ccol_indices", "row_indices", "values")
_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: _COMPRESSED_ROWS,
    torch.sparse_bsr: _COMPRESSED_ROWS,
    torch.sparse_csc: _COMPRESSED_COLUMNS,
    torch.sparse_bsc: _COMPRESSED_COLUMNS,
}


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
        self._sizes: dict[int, int] = {}  # bytes by storage address
        self._ends: dict[int, weakref.ref[Any]] = {}
        self._live_bytes = self._peak_bytes = 0
        self._runs = False
        # Threads count here together; and counting may itself collect garbage, which ends storages.
        self._counting = threading.RLock()

    def __enter__(self) -> Self:
        with self.following():
            torch.empty(0)  # the first operation in a dispatch mode imports much of torch: not while it is measured
        self._live_bytes, self._runs = 0, True
        gc.collect()
        for found in gc.get_objects():
            # By type: isinstance would run the __class__ property of any lazy proxy in the process.
            if issubclass(type(found), torch.Tensor):
                self._see(found)
        self.reset_peak()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._counting:
            self._runs = False  # for threads that go on
            self._ends.clear()  # drops the callbacks with their references
            self._sizes.clear()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow every operation of this thread, and of the threads that start meanwhile."""
        with hooked(self), self.following():
            yield

    def following(self) -> AbstractContextManager[object]:
        """Follow every operation of this thread alone."""
        follow: AbstractContextManager[object] = _Follow(self)
        return follow

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage changed its size without an operation."""
        if storage._cdata in self._sizes:
            self._count(storage)

    def synchronize(self) -> None:
        """Nothing to wait for on a CPU."""

    def reset_peak(self) -> None:
        """Let the peak start again from what is alive now."""
        self._peak_bytes = self._live_bytes

    def read(self) -> dict[str, int]:
        """requested, requested_peak, allocated, allocated_peak; bytes."""
        live, peak = self._live_bytes, self._peak_bytes
        return {"requested": live, "requested_peak": peak, "allocated": live, "allocated_peak": peak}

    def _see(self, tensor: torch.Tensor) -> None:
        """Count the tensor's storage if it is new, or its change of size if it was resized in place."""
        if type(tensor) in _ORDINARY:  # the short way, for nearly all of them
            try:
                storage = tensor.untyped_storage()
            except (NotImplementedError, RuntimeError):
                pass
            else:
                if self._sizes.get(storage._cdata) != storage.nbytes():
                    self._count(storage)
                return
        for storage in storages_of(tensor):
            if self._sizes.get(storage._cdata) != storage.nbytes():
                self._count(storage)

    def _count(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        with self._counting:
            if not self._runs or storage.device.type != "cpu" or not has_bytes(storage):
                return
            known = self._sizes.get(address)
            if known is None:
                self._ends[address] = weakref.ref(storage, lambda _: self._forget(address))
            self._sizes[address] = size
            self._live_bytes += size - (known or 0)
            self._peak_bytes = max(self._peak_bytes, self._live_bytes)

    def _forget(self, address: int) -> None:
        with self._counting:
            self._live_bytes -= self._sizes.pop(address, 0)
            self._ends.pop(address, None)


def storages_of(tensor: torch.Tensor) -> Sequence[torch.UntypedStorage]:
    """The storages that hold the tensor's bytes: one; of a sparse tensor its parts'; none where it shows none."""
    if type(tensor) in _ORDINARY:
        return _storages_of(tensor)
    # What a subclass answers is code of its own, and may be an error.
    with torch._C.DisableTorchFunctionSubclass():
        return _storages_of(tensor)


def _storages_of(tensor: torch.Tensor) -> Sequence[torch.UntypedStorage]:
    try:
        return (tensor.untyped_storage(),)
    except (NotImplementedError, RuntimeError):
        if type(tensor) not in _ORDINARY:
            return ()
        with torch.no_grad():
            parts = [getattr(tensor, name)() for name in _PARTS.get(tensor.layout, ())]
        return [part.untyped_storage() for part in parts]


def has_bytes(storage: torch.UntypedStorage) -> bool:
    """Whether there is memory behind a storage, if it has a size: none is behind a fake tensor's, or a wrapper's."""
    try:
        return storage.device.type != "meta" and (storage.data_ptr() != 0 or storage.nbytes() == 0)
    except RuntimeError:  # what asking a wrapper's storage for its data ends in
        return False


class Following(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows the inputs of every operation, and of those it is made of, to `_see_all`, the result to `_see_made`."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._left: Any = None  # the operation that is left to a subclass

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is self._left:
            self._left = None
            return NotImplemented
        if not (left := any(map(_dispatches, types))) and hides_parts(func, args):
            with self:
                return in_parts(func, args, kwargs or {})
        # Inputs first: one that is new to us was made before, or elsewhere, and is no work of this operation's.
        self._see_all(args)
        if kwargs:
            self._see_all(kwargs.values())
        result = func(*args, **(kwargs or {})) if not left else self._by_subclass(func, args, kwargs or {})
        self._see_made((result,))
        return result

    def _by_subclass(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation that a subclass has code of its own for, which is followed too."""
        self._left = func
        try:
            with self:
                return func(*args, **kwargs)
        finally:
            self._left = None

    def _see_all(self, values: Iterable[Any]) -> None:
        raise NotImplementedError

    _see_made = _see_all


class _Follow(Following):  # type: ignore[no-untyped-call]
    def __init__(self, meter: TensorMeter) -> None:
        super().__init__()
        self._meter = meter

    def _see_all(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, torch.Tensor):
                self._meter._see(value)
            elif isinstance(value, list | tuple):
                self._see_all(value)

    _see_made = _see_all


def _dispatches(kind: type[torch.Tensor]) -> bool:
    """Whether a subclass has code of its own for every operation. PyTorch's fake tensors bring a mode for that."""
    own = kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    return own and not kind.__module__.startswith("torch._subclasses.")
