"""Who keeps a tensor alive: the chain of Python objects from it to a name that a user would recognise."""

from __future__ import annotations

import contextvars
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from vram.explanation.holders.autograd import Graphs
from vram.explanation.holders.heap import Heap
from vram.explanation.holders.native import Natives, in_autocast_cache, native_kinds
from vram.explanation.holders.search import Path, look_ahead, path_to_name
from vram.explanation.holders.torch_private import check_torch
from vram.explanation.holders.words import in_words
from vram.replaying.collector import no_collections
from vram.torch_hooks.storages import storages_of

__all__ = ["holder", "holders"]

check_torch()

_ENDED = "nothing any more: it was let go of meanwhile"
_NOTHING = "nothing that Python's collector can see: native code keeps it"
_CUT_SHORT = "not known: the search was cut short by the number of objects, and what it saw does not keep it"
_AUTOCAST = (
    "autocast's cache of casted weights, which is cleared where the outermost torch.autocast block ends, or by "
    "torch.clear_autocast_cache()"
)


def holder(storage: Any, *, named: Mapping[int, str] | None = None) -> str:
    """Words for what keeps `storage` alive: see `holders`."""
    return holders([storage], named=named)[0]


def holders(storages: Sequence[Any], *, named: Mapping[int, str] | None = None) -> list[str]:
    """Words for what keeps each of `storages` (`torch.UntypedStorage`; None: it is gone), from the nearest to a name.

    One walk over all objects serves them all. `named` gives ids of objects that are a name by themselves, with what to
    call them. The collector must not be frozen: see `vram.replaying.collector.unfrozen`.
    """
    living = [storage for storage in storages if storage is not None]
    # A tensor's subclass answers by code of its own, which may raise. The walk makes many lists: the collector would
    # look through the whole heap for their sake.
    with torch._C.DisableTorchFunctionSubclass(), no_collections():
        search = _Search(living, named or {}, own=[storages, living])
        try:
            words = [search.words(storage) for storage in living]
        finally:
            search.close()
        unknown = [index for index, text in enumerate(words) if text in (_NOTHING, _CUT_SHORT)]
        cached = in_autocast_cache([living[index] for index in unknown])
    for index in (index for index, hit in zip(unknown, cached, strict=True) if hit):
        words[index] = _AUTOCAST
    each = iter(words)
    return [_ENDED if storage is None else next(each) for storage in storages]


class _Search:
    """The searches for all of some storages, in one heap."""

    def __init__(self, storages: Sequence[Any], named: Mapping[int, str], own: Sequence[object]) -> None:
        """`own` are lists of the storages, which are nobody's holders."""
        self._named = named
        self._heap = Heap(own, native=native_kinds())
        self._tensors: dict[int, list[torch.Tensor]] = {storage._cdata: [] for storage in storages}
        for tensor in self._heap.tensors:
            for storage in storages_of(tensor):
                if (tensors := self._tensors.get(storage._cdata)) is not None:
                    tensors.append(tensor)
        look_ahead(self._heap, [self._tensors[storage._cdata] or [storage] for storage in storages], named)
        self._paths = {storage._cdata: self._path_to_tensor(storage) for storage in storages}
        if not all(path.named for path in self._paths.values()):
            self._heap.survey()  # there are holders that the collector does not know
            self._paths = {storage._cdata: self._path_to_tensor(storage) for storage in storages}

    def close(self) -> None:
        """Let go of all objects: those of this search are among them, which is a cycle."""
        self._heap.clear()
        vars(self).clear()

    @cached_property
    def _graphs(self) -> Graphs:
        """For storages that no Python object keeps, or one that comes to no name: a graph may keep that one."""
        loose = {address: path for address, path in self._paths.items() if not path.named}
        # A chain that ends at once ends with the tensor, which no node of a graph is.
        ends = (id(path.objects[-1]) for path in loose.values() if len(path.objects) > 1)
        return Graphs(self._heap, {*loose, *ends})

    @cached_property
    def _natives(self) -> Natives:
        return Natives(self._heap)

    def _path_to_tensor(self, storage: Any) -> Path:
        """From a tensor on `storage`, or from the storage itself where no tensor is left, or none comes to a name."""
        tensors = self._tensors[storage._cdata]
        path = self._path(tensors or [storage])
        if path.named or not tensors:
            return path
        from_storage = self._path([storage])
        return from_storage if from_storage.named and len(from_storage.objects) > 1 else path

    def _path(self, targets: Sequence[Any]) -> Path:
        return path_to_name(self._heap, targets, self._named)

    def words(self, storage: Any) -> str:
        """See `holders`."""
        path = self._paths[storage._cdata]
        if path.named:
            return self._held_by(path) + _view(path.objects[0], storage)
        last = path.objects[-1]
        if type(last) is contextvars.Context:
            return self._held_by(path)
        unnamed = ""
        for finder in (lambda: self._graphs, lambda: self._natives):
            words, named = self._best(finder().keepers(storage))
            if named:
                return words
            unnamed = unnamed or words
        if len(path.objects) > 1:
            words, named = self._best(self._graphs.keeping(id(last)))
            return self._held_by(path, end=f", {words}" if named else "") + _view(path.objects[0], storage)
        words = self._graphs.cycle(storage._cdata) or unnamed or self._natives.for_good(storage)
        return words or (_NOTHING if path.whole and self._graphs.whole else _CUT_SHORT)

    def _best(self, keepers: Sequence[tuple[Any, str]]) -> tuple[str, bool]:
        """Words for the nearest to a name of `keepers`, (object, how it keeps), and whether it came to one."""
        if not keepers:
            return "", False
        path = self._path([obj for obj, _ in keepers])
        how = next(how for obj, how in keepers if obj is path.objects[0])
        return f"{how} held by {self._held_by(path)}", path.named

    def _held_by(self, path: Path, *, end: str = "") -> str:
        obj = path.objects[0]
        if len(path.objects) > 1:
            return in_words(path, self._named, self._heap.locals, end=end)
        if id(obj) in self._named:
            return self._named[id(obj)]
        if (local_of := self._heap.locals.get(id(obj))) is not None:
            return f"local `{local_of[0]}` of {local_of[1]}"
        return "native code" if path.whole else "what the search, cut short, did not come to"


def _view(obj: Any, storage: Any) -> str:
    dense = issubclass(type(obj), torch.Tensor) and obj.layout is torch.strided
    own_bytes = obj.numel() * obj.element_size() if dense else 0
    return f" (a view of {own_bytes:,} B keeps the whole storage)" if 0 < own_bytes < storage.nbytes() else ""
