"""A rule's input, an operation that has run, and its output: the operations that a card runs besides."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from vram.cards import Card
from vram.simulated.device import DEVICE

_aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)


class Call(NamedTuple):
    """An operation that has run. `version`: of torch; `known` gives a tensor's value, if it is known."""

    func: Any
    args: Any
    kwargs: Any
    result: Any
    card: Card
    version: tuple[int, int]
    known: Callable[[Tensor], Tensor | None]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, passed by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


Step = tuple[Any, tuple[Any, ...], dict[str, Any]]
# None: what was made until then is dropped; a number: that which is at this place among what is alive.
Steps = Iterator[Step | int | None]
Rules = dict[str, Callable[[Call], Steps]]  # by the name of an operation, without its variant


def empty(shape: Any, dtype: torch.dtype) -> Step:
    """Memory for so many numbers."""
    return _aten.empty.memory_format, (list(shape),), {"dtype": dtype, "device": DEVICE}


def meta(shape: Any, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor without memory."""
    with _disable_current_modes():
        return torch.empty(shape, dtype=dtype, device="meta")


def of_bytes(n: int) -> Step:
    """Memory of `n` bytes."""
    return empty((n,), torch.uint8)


def clone(x: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Step:
    """A copy."""
    return _aten.clone.default, (x,), {"memory_format": memory_format}


def contiguous(x: Tensor) -> Steps:
    """A copy where `x` is not contiguous."""
    if not x.is_contiguous():
        yield clone(x)


@functools.cache
def name(func: Any) -> str:
    """The operation's name without its variant: "index_put" for aten.index_put_.default too."""
    full: str = func._schema.name
    return full.removeprefix("aten::").removesuffix("_")
