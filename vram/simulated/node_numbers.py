"""Numbers of a graph's nodes as on a card, which decide the order in which autograd's engine runs them.

A node's number is the count of those that its thread has made before (`at::sequence_number`, which is a thread's own;
the engine takes the largest first). On a card backward passes have a thread of their own, so what they make, where
`create_graph` is set or a checkpoint runs again, has small numbers; here they run in the thread that calls them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_NUMBERED = "vram: numbered"  # a key of a node's `metadata`, which stays with the node
_LAST = 2**63  # nodes that add gradients up have the largest number of all, in whichever thread

if not hasattr(torch._C._autograd, "_get_sequence_nr"):
    raise RuntimeError("this PyTorch has no torch._C._autograd._get_sequence_nr, which numbers the nodes of graphs")


class NodeNumbers(threading.local):
    """The nodes of one thread that a card's program would have made in another, or not at all."""

    def __init__(self) -> None:
        # The number of the first of some, that of the next one after them, and how many came before: in all, and of
        # the card's thread.
        self._others: list[tuple[int, int, int, int]] = []
        self._count = self._of_card = 0

    @contextmanager
    def making(self, *, on_card: bool) -> Iterator[None]:
        """Nodes that are made inside are those of the card's thread, or none of the program's."""
        begin = torch._C._autograd._get_sequence_nr()
        try:
            yield
        finally:
            end = torch._C._autograd._get_sequence_nr()
            if end > begin:
                self._others.append((begin, end, self._count, self._of_card))
                self._count += end - begin
                self._of_card += (end - begin) * on_card

    def renumber(self, outputs: Iterable[Any]) -> None:
        """Give the nodes that lead to `outputs`, tensors or edges, the numbers that they have on a card."""
        # Without nodes of the card's thread the order is the same.
        waiting = [_node(each) for each in outputs] if self._of_card else []
        while waiting:
            node = waiting.pop()
            if node is None or _NUMBERED in node.metadata:
                continue
            node.metadata[_NUMBERED] = True
            if (number := node._sequence_nr()) < _LAST:
                node._set_sequence_nr(self._on_card(number))
            waiting += [other for other, _ in node.next_functions]

    def _on_card(self, number: int) -> int:
        for begin, end, count, of_card in reversed(self._others):  # most nodes are of the last step
            if number >= end:
                return number - count - (end - begin)
            if number >= begin:
                return of_card + number - begin
        return number


def _node(output: Any) -> Any:
    if isinstance(output, Tensor):
        with torch._C.DisableTorchFunction():
            return output.grad_fn
    return getattr(output, "node", None)
