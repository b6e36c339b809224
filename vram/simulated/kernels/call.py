"""What a rule is told of an operation, and what it tells: the operations that a card runs besides."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from vram.cards import Card

_aten = torch.ops.aten
_DEVICE = torch.device("cuda", 0)
HALF = (torch.float16, torch.bfloat16)


class Call(NamedTuple):
    """An operation that has run. `version`: of torch; `known` tells what a tensor holds."""

    func: Any
    args: Any
    kwargs: Any
    result: Any
    card: Card
    version: tuple[int, int]
    known: Callable[[Tensor], Tensor | None]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """By either way of giving it."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


Step = tuple[Any, tuple[Any, ...], dict[str, Any]]
Steps = Iterator[Step | None]  # None: what was made until then is dropped
Rules = dict[str, Callable[[Call], Steps]]  # by the name of an operation, without its variant


def empty(shape: Any, dtype: torch.dtype) -> Step:
    """Memory for so many numbers."""
    return _aten.empty.memory_format, (list(shape),), {"dtype": dtype, "device": _DEVICE}


def meta(shape: Any, dtype: torch.dtype) -> Tensor:
    """A shape alone, of what lies without gaps."""
    with _disable_current_modes():
        return torch.empty(shape, dtype=dtype, device="meta")


def of_bytes(n: int) -> Step:
    """Memory of `n` bytes."""
    return empty((n,), torch.uint8)


def clone(x: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Step:
    """A copy."""
    return _aten.clone.default, (x,), {"memory_format": memory_format}


def contiguous(x: Tensor) -> Steps:
    """A copy where `x` does not lie without gaps."""
    if not x.is_contiguous():
        yield clone(x)


@functools.cache
def name(func: Any) -> str:
    """Without its variant: "index_put" of aten.index_put_.default too."""
    full: str = func._schema.name
    return full.removeprefix("aten::").removesuffix("_")
