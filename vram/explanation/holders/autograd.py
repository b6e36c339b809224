"""Storages that no Python object holds: gradients, what an autograd graph saved, and tensors shared with NumPy."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from vram.explanation.holders.objects import is_array, referents, running_locals, untracked
from vram.explanation.holders.search import WIDEST, path_to_name
from vram.torch_hooks.storages import living_tensors, storages_of, tensors_among

_MOST_CANDIDATES = 50  # that a search begins with: each object of the process is compared with all of them


def keeps(tensor: torch.Tensor, address: int) -> bool:
    """Whether the storage at `address` is the tensor's, or one of its parts'."""
    return any(storage._cdata == address for storage in storages_of(tensor))


def path_to_graph(address: int, named: Mapping[int, str]) -> tuple[str, list[Any]]:
    """Words for what keeps the storage at `address`, and the path from its tensor: one with such a gradient or graph.

    Of several the one that is nearest to a name. The path is empty where there is none.
    """
    tensors = _held_tensors()
    owners = [tensor for tensor in tensors if tensor.is_leaf and _gradient_keeps(tensor, address)]
    how = "gradient of a tensor"
    if not owners:
        guilty = _nodes_keeping(address, [tensor.grad_fn for tensor in tensors])
        owners = [tensor for tensor in tensors if tensor.grad_fn in guilty]
        how = ""
    del tensors, owners[_MOST_CANDIDATES:]
    path = path_to_name(owners, named) if owners else []
    if path and not how:
        how = f"autograd graph ({guilty[path[0].grad_fn]}) of a tensor"
    return how, path


def path_to_array(address: int, named: Mapping[int, str]) -> list[Any]:
    """The path from a NumPy array that shares a tensor of the storage at `address`. Empty where there is none.

    Arrays are none of the collector's objects: their holders are searched.
    """
    ids = {id(tensor) for tensor in living_tensors() if keeps(tensor, address)}
    sharing = [obj for obj in untracked() if is_array(obj) and id(_root_of(obj)) in ids] if ids else []
    del sharing[_MOST_CANDIDATES:]
    return path_to_name(sharing, named) if sharing else []


def _root_of(array: Any) -> Any:
    """The object that an array is a view of at last, where that is no array."""
    base = array
    while type(base) is type(array):
        base = base.base
    return base


def _held_tensors() -> list[torch.Tensor]:
    """Tensors that a Python object or a running function holds; others live only inside graphs, and name nothing."""
    objects = gc.get_objects()
    tensors = tensors_among(objects)
    ids = set(map(id, tensors))
    # One call for all of them: a million objects, one by one, take seconds.
    held = ids.intersection(map(id, referents(objects))) | ids.intersection(running_locals())
    return [tensor for tensor in tensors if id(tensor) in held]


def _gradient_keeps(tensor: torch.Tensor, address: int) -> bool:
    return tensor.grad is not None and keeps(tensor.grad, address)


def _nodes_keeping(address: int, nodes: Sequence[Any]) -> dict[Any, str]:
    """Nodes of autograd graphs through which one comes from `nodes` to what saved the storage at `address`.

    With the name of the node that did.
    """
    before = _nodes_before(nodes)
    names: dict[type, list[str]] = {}  # of what a kind of node saves: looking it up takes longer than all the rest
    keeping: dict[Any, str] = {}
    for node in before:
        if type(node) not in names:
            names[type(node)] = _saved_names(type(node))
        if any(keeps(saved, address) for saved in _saved_by(node, names[type(node)])):
            keeping[node] = node.name()
    waiting = list(keeping)
    while waiting:
        node = waiting.pop()
        for outer in before[node]:
            if outer not in keeping:
                keeping[outer] = keeping[node]
                waiting.append(outer)
    return keeping


def _nodes_before(nodes: Sequence[Any]) -> dict[Any, list[Any]]:
    """Every node of the graphs that begin with `nodes`, with the nodes that lead to it."""
    before: dict[Any, list[Any]] = {node: [] for node in nodes if node is not None}
    waiting = list(before)
    while waiting and len(before) < WIDEST:
        node = waiting.pop()
        for following, _ in node.next_functions:
            if following is None:
                continue
            if following not in before:
                before[following] = []
                waiting.append(following)
            before[following].append(node)
    return before


def _saved_names(kind: type) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_saved_") or name == "saved_tensors"]


def _saved_by(node: Any, names: Sequence[str]) -> Iterator[torch.Tensor]:
    for name in names:
        try:
            value = getattr(node, name)
        except RuntimeError:
            continue  # freed by a backward pass
        for saved in value if isinstance(value, list | tuple) else (value,):
            if isinstance(saved, torch.Tensor):
                yield saved
