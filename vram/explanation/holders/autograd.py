"""Tensors that gradients and autograd graphs keep and no Python object refers to: found from one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch

from vram.explanation.holders.heap import Heap
from vram.torch_hooks.storages import storages_of

MOST_OF_ONE = 20_000  # nodes of the graph of one tensor, before the others' turn
MOST_NODES = 200_000  # of all graphs together, at 7 us each
_BASE: Any = torch._C.TensorBase
# As the base class has them: a subclass may have code of its own for these names.
_grad_fn: Callable[[Any], Any] = _BASE.grad_fn.__get__
_grad: Callable[[Any], Any] = _BASE.grad.__get__


def is_tensor(obj: Any) -> bool:
    """Whether `obj` is a tensor; its own `__class__` is not believed."""
    return issubclass(type(obj), torch.Tensor)


def keeps(tensor: torch.Tensor, address: int) -> bool:
    """Whether the storage at `address` is the tensor's, or one of its parts'."""
    return any(storage._cdata == address for storage in storages_of(tensor))


def tensors_in(value: Any, depth: int = 4) -> Iterator[torch.Tensor]:
    """The tensors in lists, tuples and dictionaries within each other. Others' code is not run."""
    if is_tensor(value):
        yield value
    elif depth and type(value) in (list, tuple, dict):
        for item in value.values() if type(value) is dict else value:
            yield from tensors_in(item, depth - 1)


class Graphs:
    """The graphs and gradients of all tensors of a heap, and the way to `keys` in them.

    A key is the address of a storage, or the id of an object that a node may be or keep. `whole` says whether every
    node was looked at, or all keys were found before.
    """

    def __init__(self, heap: Heap, keys: Iterable[int]) -> None:
        self._missing = set(keys)
        self._before: dict[Any, list[Any]] = {}  # nodes: those that lead to each
        self._expanded: set[Any] = set()
        self._keeping: dict[int, list[tuple[Any, str]]] = {}  # by key: nodes that keep it, with the name
        self._parameters: dict[int, Any] = {}  # by id: the nodes at which graphs end
        self._left: list[Any] = []
        self._gradients: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._all_seen = heap.survey().whole
        self._held, self._loose = self._roots(heap)
        for roots in (self._held, self._loose):
            # Newest first: what is looked for was made in the last runs.
            self._walk_all(sorted({node for node, _, _ in roots if node is not None}, key=_age))
        if self._missing and self._left:
            self._walk(self._left, MOST_NODES)
        self.whole = not (self._missing and self._left)

    def keepers(self, storage: Any) -> list[tuple[Any, str]]:
        """(tensor, words) of those that keep `storage` by their gradient or graph."""
        return self.keeping(storage._cdata)

    def keeping(self, key: int) -> list[tuple[Any, str]]:
        """(tensor, words): those that a Python object holds and that keep what `key` means by gradient or graph."""
        held = {id(owner) for _, owner, _ in self._held}
        by_gradient = [
            (owner, "gradient of a tensor")
            for owner, gradient in self._gradients
            if id(owner) in held and keeps(gradient, key)
        ]
        return by_gradient or [
            (owner, f"autograd graph ({name}) of {what}") for owner, what, name in self._leading(key, self._held)
        ]

    def cycle(self, key: int) -> str:
        """Words for tensors that keep what `key` means, and that no Python object holds; "" where there are none."""
        for owner, gradient in self._gradients:
            if (keeps(gradient, key) or keeps(owner, key) or self._leads(gradient, key)) and self._closed(owner):
                return (
                    f"a reference cycle in autograd: the gradient of a {_described(owner)} has a graph that leads back "
                    "to it, as backward(create_graph=True) makes it; setting its `grad` to None ends it"
                )
        for _, what, name in self._leading(key, self._loose) if self._all_seen else ():
            return f"autograd graph ({name}) of {what} that no Python object holds"
        return ""

    def _roots(self, heap: Heap) -> tuple[list[tuple[Any, Any, str]], list[tuple[Any, Any, str]]]:
        """(node, tensor, words) where graphs begin: of tensors that a Python object holds, and of the others."""
        held = heap.survey().referred | heap.locals.keys()
        roots: tuple[list[Any], list[Any]] = ([], [])
        for tensor in heap.tensors:
            of_tensor = roots[id(tensor) not in held]
            with suppress(RuntimeError):  # a view of what was changed in place has none
                if (node := _grad_fn(tensor)) is not None:
                    of_tensor.append((node, tensor, "a tensor"))
                elif (gradient := _grad(tensor)) is not None:
                    self._gradients.append((tensor, gradient))
                    of_tensor.append((_grad_fn(gradient), tensor, "the gradient of a tensor"))
        return roots

    def _walk_all(self, nodes: Sequence[Any]) -> None:
        for node in nodes:
            if not self._missing:
                return
            self._left += self._walk([node], MOST_OF_ONE)

    def _walk(self, waiting: list[Any], most: int) -> list[Any]:
        """Look at up to `most` further nodes, from those `waiting` on; the rest of these is returned."""
        end = min(len(self._expanded) + most, MOST_NODES)
        for node in waiting:
            self._before.setdefault(node, [])
        while waiting and len(self._expanded) < end and self._missing:
            node = waiting.pop()
            if node in self._expanded:
                continue
            self._expanded.add(node)
            self._look(node)
            for following, _ in node.next_functions:
                if following is not None:
                    self._before.setdefault(following, []).append(node)
                    if following not in self._expanded:
                        waiting.append(following)
        return waiting

    def _look(self, node: Any) -> None:
        """Note what of the keys the node keeps."""
        if type(node).__name__ == "AccumulateGrad":
            self._parameters[id(node.variable)] = node
        for key in (id(node), *_keys_saved(node)):
            if key in self._missing or key in self._keeping:
                self._missing.discard(key)
                self._keeping.setdefault(key, []).append((node, node.name()))

    def _leading(self, key: int, roots: Sequence[tuple[Any, Any, str]]) -> list[tuple[Any, str, str]]:
        """(tensor, words, node's name) of the roots from which one comes to a node that keeps it."""
        names = dict(self._keeping.get(key, ()))
        self._spread(names)
        return [(owner, what, names[node]) for node, owner, what in roots if node in names]

    def _leads(self, gradient: torch.Tensor, key: int) -> bool:
        names = dict(self._keeping.get(key, ()))
        self._spread(names)
        return _grad_fn(gradient) in names

    def _closed(self, parameter: torch.Tensor) -> bool:
        """Whether the graph of the gradient of `parameter` ends at it."""
        end, begin = self._parameters.get(id(parameter)), _grad_fn(_grad(parameter))
        names = {} if end is None else {end: ""}
        self._spread(names)
        return begin is not None and begin in names

    def _spread(self, names: dict[Any, str]) -> None:
        """Enter all nodes that lead to those in `names`, each with the name of one that it leads to."""
        waiting = list(names)
        while waiting:
            node = waiting.pop()
            for outer in self._before.get(node, ()):
                if outer not in names:
                    names[outer] = names[node]
                    waiting.append(outer)


def _age(node: Any) -> int:
    """Less for nodes that were made later."""
    return -int(node._sequence_nr())


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} tensor"


_saved_names: dict[type, list[str]] = {}  # of what a kind of node saves: looking it up takes longer than all the rest


def _keys_saved(node: Any) -> Iterator[int]:
    """Addresses of the storages that a node saved, and ids of what a hook packed them into."""
    kind = type(node)
    if kind not in _saved_names:
        _saved_names[kind] = [name for name in dir(kind) if name.startswith("_raw_saved_")]
    for name in _saved_names[kind]:
        with suppress(RuntimeError):  # freed by a backward pass, or of a hook that is no Python function
            raw = getattr(node, name)
            for each in raw if type(raw) in (list, tuple) else (raw,):
                # A packed value is looked at as it is: unpacking it would run the hook, which may compute it anew.
                yield id(each.data)
                for tensor in tensors_in(each.data):
                    yield from (storage._cdata for storage in storages_of(tensor))
