"""Tensors that other tests left behind: alive when a test begins, and no part of what it uses."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Mapping
from types import FunctionType, ModuleType
from typing import Any

import torch

from vram.explanation.holders import holder
from vram.meters import torch_device
from vram.replaying.collector import unfrozen
from vram.torch_hooks.storages import has_bytes, living_tensors, storages_of

_MOST_OBJECTS = 500_000  # looked through from what a test uses
_NOT_USED = ("_pytest", "pytest", "pluggy", "vram")  # packages whose objects lead to every test of the session


class Earlier:
    """Storages that are alive now, as a test begins, and were not at `collection`. Keeps none of them."""

    def __init__(self, collection: Earlier | None = None) -> None:
        self._collection = collection
        storages = [storage for tensor in living_tensors() for storage in storages_of(tensor)]
        self._known = {storage._cdata: weakref.ref(storage) for storage in storages}

    def __contains__(self, storage: torch.UntypedStorage) -> bool:
        known = self._known.get(storage._cdata)
        here = known is not None and known() is storage
        return here and (self._collection is None or storage not in self._collection)

    def left(self, device: str, used: Iterable[object], named: Mapping[int, str] | None = None) -> tuple[int, str]:
        """Bytes on `device` that are alive still, except what `used` objects lead to, and who holds the largest.

        `named` is as `vram.explanation.holders.holder` takes it.
        """
        on, fake = torch_device(device), device.startswith("simulated")
        with unfrozen():
            own = _storages_used(used)
            sizes: dict[int, tuple[int, weakref.ref[Any]]] = {}
            for tensor in living_tensors():
                for storage in storages_of(tensor):
                    there = storage.device.type == on.type and (fake or has_bytes(storage))
                    if there and storage in self and storage._cdata not in own:
                        sizes[storage._cdata] = (storage.nbytes(), weakref.ref(storage))
            if not sizes:
                return 0, ""
            tensor = storage = None  # type: ignore[assignment]  # names of ours would be taken for holders
            largest = max(sizes.values(), key=lambda each: each[0])[1]
            return sum(n_bytes for n_bytes, _ in sizes.values()), holder(largest(), named=named)


def _storages_used(roots: Iterable[object]) -> set[int]:
    """Addresses of the storages that objects lead to, through what functions name, and through no module or class."""
    seen: set[int] = set()
    storages: set[int] = set()
    waiting: list[Any] = list(roots)
    while waiting and len(seen) < _MOST_OBJECTS:
        one = waiting.pop()
        kind = type(one)
        if id(one) in seen or issubclass(kind, type | ModuleType) or kind.__module__.partition(".")[0] in _NOT_USED:
            continue
        seen.add(id(one))
        if issubclass(kind, torch.Tensor):
            storages |= {storage._cdata for storage in storages_of(one)}
        if kind is FunctionType:
            names = one.__code__.co_names
            waiting += [one.__closure__, one.__defaults__, one.__kwdefaults__, vars(one)]
            waiting += [one.__globals__[name] for name in names if name in one.__globals__]
        else:
            waiting += gc.get_referents(one)
    return storages
