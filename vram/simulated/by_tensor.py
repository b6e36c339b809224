"""Something for each tensor, or for each storage, as long as that lives."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor


class ByTensor:
    """A tensor for each tensor. Quicker than torch's WeakIdKeyDictionary, which wraps the tensor at every look-up."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}

    def __bool__(self) -> bool:
        return bool(self._known)

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._known

    def __setitem__(self, tensor: Tensor, value: Tensor) -> None:
        address = id(tensor)
        known = self._known
        known[address] = weakref.ref(tensor, lambda _: known.pop(address, None)), value

    def get(self, tensor: Tensor) -> Tensor | None:
        """The value for `tensor`; None where there is none."""
        known = self._known.get(id(tensor))
        return None if known is None else known[1]

    def pop(self, tensor: Tensor) -> Tensor | None:
        """Remove and return the value for `tensor`; None where there is none."""
        known = self._known.pop(id(tensor), None)
        return None if known is None else known[1]

    def items(self) -> list[tuple[Tensor, Tensor]]:
        """The living tensors and their values."""
        pairs = [(known(), value) for known, value in list(self._known.values())]
        return [(tensor, value) for tensor, value in pairs if tensor is not None]


class ByStorage:
    """Something for each storage; every view of it has the same."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[torch.UntypedStorage], Any]] = {}

    def __bool__(self) -> bool:
        return bool(self._known)

    def get(self, tensor: Tensor) -> Any:
        """The value for the tensor's storage; None where there is none."""
        if not self._known or tensor.layout is not torch.strided:
            return None
        return self._known.get(tensor.untyped_storage()._cdata, (None, None))[1]

    def put(self, tensor: Tensor, value: Any) -> None:
        """Set the value for the tensor's storage."""
        storage = tensor.untyped_storage()
        address = storage._cdata
        self._known[address] = weakref.ref(storage, lambda _: self._known.pop(address, None)), value

    def drop(self, tensor: Tensor) -> None:
        """Remove the value for the tensor's storage."""
        if self._known and tensor.layout is torch.strided:
            self._known.pop(tensor.untyped_storage()._cdata, None)
