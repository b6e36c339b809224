"""Who keeps a tensor alive: the chain of Python objects from it to a name that a user would recognise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from vram.explanation.holders.autograd import keeps, path_to_array, path_to_graph
from vram.explanation.holders.objects import running_locals
from vram.explanation.holders.search import path_to_name
from vram.explanation.holders.words import in_words
from vram.torch_hooks.storages import living_tensors

__all__ = ["holder"]


def holder(storage: Any, *, named: Mapping[int, str] | None = None) -> str:
    """Words for what keeps `storage` (a `torch.UntypedStorage`) alive, from nearest holder to a known name.

    `named` gives ids of objects that are a name by themselves, with what to call them. The collector must not be
    frozen: see `vram.replaying.collector.unfrozen`.
    """
    # A tensor's subclass answers by code of its own, which may raise.
    with torch._C.DisableTorchFunctionSubclass():
        return _holder(storage, named or {})


def _holder(storage: Any, named: Mapping[int, str]) -> str:
    # One search at a time, and its list of tensors let go of before the next: ours would be taken for a holder.
    path = _path_to_tensor(storage, named)
    if len(path) == 1 and id(path[0]) in named:
        return named[id(path[0])]
    if len(path) == 1 and (local_of := running_locals().get(id(path[0]))) is not None:
        return f"local `{local_of[0]}` of {local_of[1]}"
    if len(path) > 1:
        return in_words(path, named) + _view(path[0], storage)
    del path
    how, path = path_to_graph(storage._cdata, named)
    if not path:
        how, path = "NumPy array", path_to_array(storage._cdata, named)
    if path:
        return f"{how} held by {in_words(path, named) if len(path) > 1 else 'native code'}"
    return "nothing that Python's collector can see: native code keeps it"


def _path_to_tensor(storage: Any, named: Mapping[int, str]) -> list[Any]:
    """The path of `path_to_name` from a tensor on `storage`, or from the storage itself where no tensor is left."""
    return path_to_name([tensor for tensor in living_tensors() if keeps(tensor, storage._cdata)] or [storage], named)


def _view(obj: Any, storage: Any) -> str:
    dense = issubclass(type(obj), torch.Tensor) and obj.layout is torch.strided
    own_bytes = obj.numel() * obj.element_size() if dense else 0
    return f" (a view of {own_bytes:,} B keeps the whole storage)" if 0 < own_bytes < storage.nbytes() else ""
