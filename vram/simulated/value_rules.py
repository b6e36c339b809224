"""Which values of simulated tensors are worth keeping, can be had without any other value, or are assumed."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from vram.simulated.operations import arguments, written_arguments

MOST_ELEMENTS = 2**20
_MOST_FLOATS = 16  # from outside: a scale, a temperature; never activations
_KINDS = (torch.bool, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_FACTORIES = {
    f"aten::{name}" for name in ("arange", "empty", "eye", "full", "linspace", "ones", "scalar_tensor", "zeros")
}
_BY_NUMBERS = ("aten::arange", "aten::eye", "aten::linspace")  # their sizes follow from numbers among the arguments
_LIKE = {f"aten::{name}" for name in ("full_like", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like")}
_RANDOM_INTEGERS = {f"aten::{name}" for name in ("randint", "randperm", "random_")}  # drawn for real where few


def is_small(dtype: torch.dtype, elements: int) -> bool:
    """Whether values of so many elements are kept."""
    return elements <= (MOST_ELEMENTS if dtype in _KINDS else _MOST_FLOATS)


@functools.cache
def is_drawn(func: Any) -> bool:
    """Whether random numbers decide the result, and not integers, which are drawn for real."""
    return torch.Tag.nondeterministic_seeded in func.tags and func._schema.name not in _RANDOM_INTEGERS


def pattern(func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """A real tensor for an operation as zeros_like, which reads a tensor's looks alone, if it makes a small one."""
    if func._schema.name not in _LIKE:
        return None
    model, new = args[0], func._schema.name.startswith("aten::new_")
    elements = math.prod(args[1]) if new else model.numel()
    if model.layout is not torch.strided or not is_small(kwargs.get("dtype") or model.dtype, elements):
        return None
    shape, strides = ((), ()) if new else (model.shape, model.stride())
    with _disable_current_modes():  # on the meta device: a column of a large matrix has the matrix's strides
        return torch.empty_like(torch.empty_strided(shape, strides, dtype=model.dtype, device="meta"), device="cpu")


def from_nothing(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operation makes a small tensor from no other."""
    name = func._schema.name
    if name not in _FACTORIES and name not in _RANDOM_INTEGERS:
        return False
    if name in _BY_NUMBERS:
        return all(abs(value) <= MOST_ELEMENTS for value in args if isinstance(value, int | float))
    size = next((value for value in args if isinstance(value, list | tuple)), ())
    if name == "aten::empty":  # weights, too
        return is_small(kwargs.get("dtype") or torch.float32, math.prod(size))
    return math.prod(size) <= MOST_ELEMENTS


@functools.cache
def follows_operands(func: Any) -> bool:
    """Whether an operation writes into none of its operands, and its result has a value only if all of them have."""
    name = func._schema.name
    special = name in _LIKE or name in _CHOICES or name == "aten::_local_scalar_dense"
    return not special and not func._schema.is_mutable and not written_arguments(func)


def assumed_indices(token: int, func: Any, args: Any, kwargs: Any, result: Tensor) -> Tensor | None:
    """Indices that a run could choose: in range, and distinct where a real run's would be; None where none are chosen.

    `token` is what argmax and multinomial choose.
    """
    choose = _CHOICES.get(func._schema.name)
    if choose is None or result.dtype != torch.int64 or not is_small(result.dtype, result.numel()):
        return None
    with _disable_current_modes():
        return choose(token, arguments(func, args, kwargs), result)


def choice_text(func: Any, token: int) -> str:
    """The assumption of `assumed_indices` in words."""
    name = func._schema.name.removeprefix("aten::")
    return (
        f"{name} chooses index {token}" if name in ("argmax", "multinomial") else f"{name} chooses the first positions"
    )


def _argmax(token: int, named: dict[str, Any], result: Tensor) -> Tensor:
    choices = named["self"].numel() if named["dim"] is None else _size(named["self"], named["dim"])
    return torch.full(result.shape, min(token, choices - 1))


def _multinomial(token: int, named: dict[str, Any], result: Tensor) -> Tensor:
    choices, places = _size(named["self"], -1), torch.arange(_size(result, -1))
    first = min(token, choices - 1)
    return ((first + places * (not named["replacement"])) % choices).expand(result.shape).clone()


def _first_positions(_: int, named: dict[str, Any], result: Tensor) -> Tensor | None:
    if not result.dim():
        return None
    dim = named["dim"] % result.dim()
    places = torch.arange(result.shape[dim]).view(-1, *[1] * (result.dim() - dim - 1))
    return places.expand(result.shape).clone()


def _position_0(_: int, named: dict[str, Any], result: Tensor) -> Tensor:
    return torch.zeros(result.shape, dtype=torch.int64)


_CHOICES = {
    "aten::argmax": _argmax,
    "aten::multinomial": _multinomial,
    "aten::topk": _first_positions,
    "aten::sort": _first_positions,
    "aten::max": _position_0,
    "aten::min": _position_0,
}


def _size(tensor: Tensor, dim: int) -> int:
    return tensor.shape[dim] if tensor.dim() else 1
