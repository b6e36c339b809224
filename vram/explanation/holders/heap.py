"""All objects that Python's collector knows at one moment: who refers to whom, for any number of searches."""

from __future__ import annotations

import gc
import types
from collections.abc import Iterable, Sequence
from itertools import chain, compress
from typing import Any

import numpy as np

from vram.explanation.holders.objects import array_kinds, referents, running_frames, running_locals
from vram.explanation.holders.survey import Survey
from vram.torch_hooks.storages import tensors_among

# The collector's own look for the referrers of a few objects takes a tenth of the time that the index takes.
_MOST_LOOKS = 16
_MOST_AT_ONCE = 64
_CHUNK = 16_384  # objects whose referents are listed at a time


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
        self._survey: Survey | None = None
        self._index: Index | None = None

    @property
    def whole(self) -> bool:
        """Whether nothing that may refer to something is left out of the answers."""
        return self._survey is not None and self._survey.whole

    @property
    def indexed(self) -> bool:
        """Whether all is answered from the index."""
        return self._index is not None

    def clear(self) -> None:
        """Let go of everything."""
        for objects in (self.objects, self.tensors, self._known):
            objects.clear()
        self._survey = self._index = None

    def survey(self) -> Survey:
        """A survey of all objects' references; its containers are among the answers from now on."""
        if self._survey is None:
            visible = [obj for obj in self.objects if id(obj) not in self._hidden]
            self._survey = Survey(visible, self.tensors, self._native_kinds)
        return self._survey

    def referrers(self, objects: Sequence[Any]) -> list[tuple[Any, Any]]:
        """(referrer, referent) for everything that refers to one of `objects`."""
        if self._index is None:
            missing = [obj for obj in objects if id(obj) not in self._known]
            if missing and (self._looks == _MOST_LOOKS or len(missing) > _MOST_AT_ONCE):
                self._index = Index([*self.survey().loose, *self.objects], self._hidden)
            elif missing:
                self._look(missing)
        if self._index is not None:
            return self._index.referrers(objects)
        loose = {} if self._survey is None else self._survey.containers
        return [(each, obj) for obj in objects for each in (*self._known[id(obj)], *loose.get(id(obj), ()))]

    def of_kind(self, kinds: tuple[type, ...]) -> list[Any]:
        """All objects of one of `kinds` or of a class below it."""
        # Types are compared: isinstance would run the __class__ property of any lazy proxy.
        matching = {kind for kind in set(map(type, self.objects)) if issubclass(kind, kinds)}
        return list(compress(self.objects, map(matching.__contains__, map(type, self.objects))))

    def _look(self, objects: Sequence[Any]) -> None:
        self._looks += 1
        asked: dict[int, list[Any]] = {id(obj): [] for obj in objects}
        referrers = gc.get_referrers(*objects)
        for referrer, alive_then in zip(referrers, _among(_ids(referrers), self._ids), strict=True):
            if alive_then and id(referrer) not in self._hidden:
                for address in asked.keys() & set(map(id, referents(referrer))):
                    asked[address].append(referrer)
        self._known |= asked


class Index:
    """Who refers to whom, of `objects` but for `hidden` ones: made by one walk over them."""

    def __init__(self, objects: Sequence[Any], hidden: set[int]) -> None:
        special = {kind for kind in set(map(type, objects)) if issubclass(kind, (types.ModuleType, *array_kinds()))}
        self._objects = [obj for obj in objects if id(obj) not in hidden and type(obj) not in special]
        counts: list[int] = []
        to: list[np.ndarray] = []
        for start in range(0, len(self._objects), _CHUNK):
            lists = list(map(gc.get_referents, self._objects[start : start + _CHUNK]))
            counts += map(len, lists)
            to.append(_ids(list(chain.from_iterable(lists))))
        for obj in (obj for obj in objects if type(obj) in special):
            self._objects.append(obj)
            counts.append(len(referents(obj)))
            to.append(_ids(referents(obj)))
        all_to = np.concatenate([np.zeros(0, np.int64), *to])
        order = all_to.argsort()
        self._to = all_to[order]
        self._from = np.repeat(np.arange(len(counts), dtype=np.int32), counts)[order]

    def referrers(self, objects: Sequence[Any]) -> list[tuple[Any, Any]]:
        """(referrer, referent) for everything that refers to one of `objects`."""
        ids = _ids(objects)
        firsts, lasts = self._to.searchsorted(ids).tolist(), self._to.searchsorted(ids, "right").tolist()
        return [
            (self._objects[index], obj)
            for obj, first, last in zip(objects, firsts, lasts, strict=True)
            for index in self._from[first:last].tolist()
        ]


def _ids(objects: Sequence[Any]) -> np.ndarray:
    return np.fromiter(map(id, objects), np.int64, len(objects))


def _among(ids: np.ndarray, in_order: np.ndarray) -> list[bool]:
    """Which of `ids` are among those `in_order`."""
    if not in_order.size:
        return [False] * ids.size
    hits: list[bool] = (in_order[in_order.searchsorted(ids).clip(max=in_order.size - 1)] == ids).tolist()
    return hits
