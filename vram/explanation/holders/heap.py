"""One walk over all objects that Python's collector knows: who refers to whom, for any number of searches."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, compress
from typing import Any

import numpy as np

from vram.explanation.holders.objects import is_array, namespace, running_frames, running_locals
from vram.torch_hooks.storages import tensors_among

MOST_OBJECTS = 3_000_000  # that the index has, at 1 to 2 us each
_CHUNK = 16_384  # objects whose referents are listed at a time
# The collector's own look through all objects takes a tenth of the index, for a few objects at a time.
_MOST_LOOKS = 12
_MOST_AT_ONCE = 64


class Heap:
    """Everything alive at one moment. `locals` are those of running functions, by id.

    Holds all objects, so that none ends and no address is used again while searches go on: to be let go of after them.
    """

    def __init__(self, own: Iterable[object] = (), *, native: Iterable[type] = ()) -> None:
        """`own` are lists of the caller's, which are nobody's holders; `native` are kinds unknown to the collector."""
        self.locals = running_locals()
        self._hidden = running_frames().union(map(id, own))
        self.objects = gc.get_objects()
        self.tensors = tensors_among(self.objects)
        self._native_kinds = tuple(native)
        self._ids = _ids(self.objects)  # what is made from here on, as the search's own lists, is not in it
        self._ids.sort()
        self._looks = 0
        self._known: dict[int, list[Any]] = {}  # referrers of those that were asked for
        self.index: Index | None = None

    def clear(self) -> None:
        """Let go of everything."""
        for objects in (self.objects, self.tensors, self._known):
            objects.clear()
        self.index = None

    def complete(self) -> Index:
        """The index of all objects, from which everything is answered from now on."""
        if self.index is None:
            self.index = Index([obj for obj in self.objects if id(obj) not in self._hidden], self._native_kinds)
            self._known.clear()
        return self.index

    def referrers(self, objects: Sequence[Any]) -> list[tuple[Any, Any]]:
        """(referrer, referent) for everything that refers to one of `objects`."""
        if self.index is None:
            missing = [obj for obj in objects if id(obj) not in self._known]
            if not missing or (self._looks < _MOST_LOOKS and len(missing) <= _MOST_AT_ONCE):
                self._look(missing)
                return [(referrer, obj) for obj in objects for referrer in self._known[id(obj)]]
        return self.complete().referrers(objects)

    def _look(self, objects: Sequence[Any]) -> None:
        if not objects:
            return
        self._looks += 1
        asked: dict[int, list[Any]] = {id(obj): [] for obj in objects}
        referrers = gc.get_referrers(*objects)
        for referrer, alive_then in zip(referrers, _among(_ids(referrers), self._ids), strict=True):
            if alive_then and id(referrer) not in self._hidden:
                for address in asked.keys() & set(map(id, referents(referrer))):
                    asked[address].append(referrer)
        self._known |= asked


class Index:
    """Who refers to whom, of all objects: made by one walk over them.

    Containers that the collector does not know are in it too, if an object that it knows leads to them. `natives` are
    NumPy arrays, and objects of the kinds that were asked for. `whole` says whether no object was left out.
    """

    def __init__(self, known: Sequence[Any], native: Iterable[type]) -> None:
        self.whole = len(known) <= MOST_OBJECTS
        self.objects: list[Any] = []
        self.natives: list[Any] = []
        self._loose_kinds = frozenset((dict, tuple, *_array_kinds(), *native))
        self._counts: list[np.ndarray] = []
        self._referents: list[np.ndarray] = []
        self._enter_all(known[:MOST_OBJECTS])
        self._sort()

    def referrers(self, objects: Sequence[Any]) -> list[tuple[Any, Any]]:
        """(referrer, referent) for everything that refers to one of `objects`."""
        ids = _ids(objects)
        firsts, lasts = self._to.searchsorted(ids).tolist(), self._to.searchsorted(ids, "right").tolist()
        return [
            (self.objects[index], obj)
            for obj, first, last in zip(objects, firsts, lasts, strict=True)
            for index in self._from[first:last].tolist()
        ]

    def referred(self, objects: Sequence[Any]) -> list[bool]:
        """Which of `objects` an object refers to; others live in native code alone."""
        return _among(_ids(objects), self._to)

    def of_kind(self, kinds: tuple[type, ...]) -> list[Any]:
        """All objects of one of `kinds` or of a class below it."""
        # Types are compared: isinstance would run the __class__ property of any lazy proxy.
        matching = {kind for kind in set(map(type, self.objects)) if issubclass(kind, kinds)}
        return list(compress(self.objects, map(matching.__contains__, map(type, self.objects))))

    def _enter_all(self, known: Sequence[Any]) -> None:
        """Enter what the collector knows, and then containers that only they lead to and that it does not know."""
        kinds = set(map(type, known))
        modules = {kind for kind in kinds if issubclass(kind, types.ModuleType)}
        others = list(compress(known, map(kinds.difference(modules).__contains__, map(type, known))))
        loose = self._enter([obj for obj in known if type(obj) in modules], referents)
        loose |= self._enter(others, gc.get_referents)
        seen: set[int] = set()
        while loose:
            seen |= loose.keys()
            arrays = [obj for obj in loose.values() if is_array(obj)]
            plain = [obj for obj in loose.values() if type(obj) in (dict, tuple)]
            self.natives += [obj for obj in loose.values() if type(obj) not in (dict, tuple)]
            loose = self._enter(arrays, referents) | self._enter(plain, gc.get_referents)
            loose = {address: obj for address, obj in loose.items() if address not in seen}

    def _enter(self, objects: list[Any], referents: Callable[[Any], list[Any]]) -> dict[int, Any]:
        """Enter `objects` with their referents; those of the latter that the collector does not know, by id."""
        loose: dict[int, Any] = {}
        for start in range(0, len(objects), _CHUNK):
            lists = list(map(referents, objects[start : start + _CHUNK]))
            flat = list(chain.from_iterable(lists))
            self._counts.append(np.fromiter(map(len, lists), np.int64, len(lists)))
            self._referents.append(np.fromiter(map(id, flat), np.int64, len(flat)))
            alike = compress(flat, map(self._loose_kinds.__contains__, map(type, flat)))
            loose |= {id(obj): obj for obj in alike if not gc.is_tracked(obj)}
        self.objects += objects
        return loose

    def _sort(self) -> None:
        counts = np.concatenate([np.zeros(0, np.int64), *self._counts])
        to = np.concatenate([np.zeros(0, np.int64), *self._referents])
        order = to.argsort()
        self._to = to[order]
        self._from = np.repeat(np.arange(counts.size, dtype=np.int32), counts)[order]
        del self._counts, self._referents


def _ids(objects: Sequence[Any]) -> np.ndarray:
    return np.fromiter(map(id, objects), np.int64, len(objects))


def _among(ids: np.ndarray, in_order: np.ndarray) -> list[bool]:
    """Which of `ids` are among those `in_order`."""
    if not in_order.size:
        return [False] * ids.size
    hits: list[bool] = (in_order[in_order.searchsorted(ids).clip(max=in_order.size - 1)] == ids).tolist()
    return hits


def _array_kinds() -> tuple[type, ...]:
    numpy = sys.modules.get("numpy")
    return () if numpy is None else (numpy.ndarray,)


def referents(obj: Any) -> list[Any]:
    """The objects that `obj` refers to; a module only to its namespace.

    Native modules have more, and in Python 3.12 `_asyncio` names what is dead: whoever touches that breaks its list of
    free objects, and the next look at it never ends.
    """
    if issubclass(type(obj), types.ModuleType):
        return [namespace(obj)]
    if not is_array(obj):
        return gc.get_referents(obj)
    # An array of numbers shares memory with its base, and is found by that.
    return [item for item in (obj.base, *obj.flat) if item is not None] if obj.dtype == object else []
