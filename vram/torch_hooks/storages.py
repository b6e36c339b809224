"""Storages: those behind a tensor, and following the living ones from their first use to their end."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any, Generic, TypeVar

import torch

from vram.torch_hooks.frozen import freeze, freeze_again, frozen, unfreeze

_T = TypeVar("_T")
_LOOKED_FOR = (torch.Tensor, torch.nn.Module, torch.optim.Optimizer)
_ORDINARY = (torch.Tensor, torch.nn.Parameter)
_META = torch.device("meta")
# The method behind the name: who follows what reads a tensor's bytes (`suggestions/uses.py`) wraps the name.
untyped_storage_of: Callable[[torch.Tensor], torch.UntypedStorage] = torch._C.TensorBase.untyped_storage
_COMPRESSED_ROWS = ("crow_indices", "col_indices", "values")
_COMPRESSED_COLUMNS = ("ccol_indices", "row_indices", "values")
_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: _COMPRESSED_ROWS,
    torch.sparse_bsr: _COMPRESSED_ROWS,
    torch.sparse_csc: _COMPRESSED_COLUMNS,
    torch.sparse_bsc: _COMPRESSED_COLUMNS,
}


class LivingStorages(Generic[_T]):
    """Storages that are followed to their end by weak references, each with a value of its owner's.

    A storage is known by its address, which is free for another one only after `ended` was called.
    """

    def __init__(self, ended: Callable[[int, _T], None]) -> None:
        """`ended` gets the last known bytes and the value of a storage that ends, in whichever thread that is."""
        self._ended = ended
        self.sizes: dict[int, int] = {}  # bytes by address, to ask in a hurry
        self._known: dict[int, tuple[weakref.ref[Any], _T]] = {}

    def __contains__(self, storage: torch.UntypedStorage) -> bool:
        return storage._cdata in self.sizes

    def get(self, storage: torch.UntypedStorage) -> _T | None:
        """The value of a storage; None where it is not followed."""
        known = self._known.get(storage._cdata)
        return None if known is None else known[1]

    def changed(self, storage: torch.UntypedStorage) -> bool:
        """Whether a storage is new, or has another size than it had."""
        return self.sizes.get(storage._cdata) != storage.nbytes()

    def put(self, storage: torch.UntypedStorage, value: _T) -> tuple[int, _T] | None:
        """Follow a storage, or give it another value; (bytes, value) as they were before, None where it is new."""
        address = storage._cdata
        known = self._known.get(address)
        if known is None:
            self._known[address] = weakref.ref(storage, lambda _: self._end(address)), value
            self.sizes[address] = storage.nbytes()
            return None
        before = self.sizes[address], known[1]
        self._known[address] = known[0], value
        self.sizes[address] = storage.nbytes()
        return before

    def values(self) -> list[_T]:
        """Values of the storages alive now, in the order in which these were first put."""
        return [value for _, value in list(self._known.values())]

    def living(self) -> Iterator[tuple[Any, _T]]:
        """(storage, value) of the storages alive now."""
        for end, value in list(self._known.values()):
            if (storage := end()) is not None:
                yield storage, value

    def clear(self) -> None:
        """Follow none any more."""
        self._known.clear()  # drops the callbacks with their references
        self.sizes.clear()

    def _end(self, address: int) -> None:
        known = self._known.pop(address, None)
        if known is not None:  # else another thread has just cleared us
            self._ended(self.sizes.pop(address), known[1])


class _Marker:
    """The collector sees one until somebody freezes again."""


class _Frozen:
    """Tensors, modules and optimizers that `gc.freeze` has hidden from Python's collector, as far as they are alive."""

    def __init__(self) -> None:
        self._marker: _Marker | None = None  # made when frozen objects were looked through last
        self._hidden: list[weakref.ref[Any]] = []

    def is_known(self, seen: Sequence[Any]) -> bool:
        """Whether what is hidden was looked through, when the collector sees `seen`."""
        if not frozen():
            self._marker, self._hidden = None, []
            return True
        return _marked(seen)

    def look(self) -> None:
        """Look through what is hidden."""
        # Nothing lists frozen objects. Who unfreezes and freezes again hides others, which may be fewer.
        ours = unfreeze()
        hidden = _references(gc.get_objects())
        freeze_again(ours=ours)
        self._marker, self._hidden = _Marker(), hidden

    def living(self, kinds: tuple[type, ...]) -> list[Any]:
        """Those of `kinds` that were hidden when it was looked last."""
        return _among([one for one in (known() for known in self._hidden) if one is not None], kinds)

    def freeze_more(self) -> None:
        """Hide what was made since we froze, and know of that too."""
        seen = gc.get_objects()
        known = _marked(seen)
        more = _references(seen) if known else []
        freeze(ours=True)
        if known:
            self._marker, self._hidden = _Marker(), self._hidden + more


def _marked(seen: Sequence[Any]) -> bool:
    """Whether all frozen objects were looked through, and nobody has frozen more."""
    return _Marker in set(map(type, seen))


def _references(objects: Sequence[Any]) -> list[weakref.ref[Any]]:
    return [weakref.ref(one) for one in _among(objects, _LOOKED_FOR)]


_frozen = _Frozen()


def freeze_more() -> None:
    """Hide from the collector what was made since we froze, and go on seeing its tensors here."""
    _frozen.freeze_more()


def living_tensors() -> list[torch.Tensor]:
    """All tensors that Python's collector sees, and those that `gc.freeze` hides from it.

    A list of one's own, to be let go of before holders are looked for.
    """
    return living(torch.Tensor)


def living(*kinds: type[Any]) -> list[Any]:
    """The same of objects of other kinds: tensors, modules and optimizers."""
    seen = gc.get_objects()
    if not _frozen.is_known(seen):
        del seen  # it would keep garbage
        _frozen.look()
        seen = gc.get_objects()
    return list({id(one): one for one in (*_frozen.living(kinds), *_among(seen, kinds))}.values())


def tensors_among(objects: Sequence[Any]) -> list[torch.Tensor]:
    """The tensors among `objects`."""
    return _among(objects, (torch.Tensor,))


def _among(objects: Sequence[Any], kinds: tuple[type, ...]) -> list[Any]:
    # Types are compared: isinstance would run the __class__ property of any lazy proxy, and take much longer.
    below = {kind for kind in set(map(type, objects)) if issubclass(kind, kinds)}
    return list(compress(objects, map(below.__contains__, map(type, objects))))


def storages_of(tensor: torch.Tensor) -> Sequence[torch.UntypedStorage]:
    """The storages that hold the tensor's bytes: one; of a sparse tensor its parts'; none where it shows none."""
    if type(tensor) in _ORDINARY:
        try:
            return (untyped_storage_of(tensor),)
        except (NotImplementedError, RuntimeError):
            with torch.no_grad():
                parts = [getattr(tensor, name)() for name in _PARTS.get(tensor.layout, ())]
            return [part.untyped_storage() for part in parts]
    # A subclass has code of its own, which may raise.
    with torch._C.DisableTorchFunctionSubclass():
        try:
            return (tensor.untyped_storage(),)
        except (NotImplementedError, RuntimeError):
            return ()


def has_bytes(storage: torch.UntypedStorage) -> bool:
    """Whether there is memory behind a storage, if it has a size: none is behind a fake tensor's, or a wrapper's."""
    try:
        return storage.data_ptr() != 0 or (storage.nbytes() == 0 and storage.device != _META)
    except RuntimeError:  # what asking a wrapper's storage for its data ends in
        return False
