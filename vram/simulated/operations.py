"""Questions about an operation and its tensors, whatever their values are."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from vram.frames import line_here
from vram.torch_hooks.dispatch import NO_TENSORS

# Operations whose sparse result consists of what they are passed, or of nothing.
_SPARSE_OF_PARTS = {
    *("_coalesced", "_sparse_coo_tensor_unsafe", "_sparse_coo_tensor_with_dims"),
    *("_sparse_coo_tensor_with_dims_and_tensors", "alias", "detach", "empty", "zeros_like"),
}
_QUANTISED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}
_TORCH_S_OWN = ("aten", "prims", "prim", "profiler")


def tensors(value: Any) -> list[Tensor]:
    """Every tensor in nested lists, tuples and dictionaries."""
    found: list[Tensor] = []
    _collect((value,), found)
    return found


def _collect(values: Iterable[Any], found: list[Tensor]) -> None:
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            found.append(value)
        elif kind in NO_TENSORS:
            pass
        elif isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):  # in half the time of list | tuple
            _collect(value, found)
        elif isinstance(value, dict):
            _collect(value.values(), found)


def is_real(tensor: Tensor) -> bool:
    """Whether it has bytes, in main memory."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu"


def arguments(func: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """An operation's arguments by name, with the defaults of those that the call leaves out."""
    defaults: dict[str, Any] = {each.name: each.default_value for each in func._schema.arguments}
    return defaults | dict(zip(defaults, args, strict=False)) | kwargs


@functools.cache
def aliases(func: Any) -> bool:
    """Whether an operation returns, or writes into, memory that it is passed."""
    return any(each.alias_info is not None for each in func._schema.arguments)


@functools.cache
def written_arguments(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of each argument that an operation writes into."""
    all_arguments = enumerate(func._schema.arguments)
    # Batch normalisation writes what its schema does not say.
    unsaid = ("running_mean", "running_var") if "batch_norm" in func._schema.name else ()
    # Gradients are assumed to be finite: what a GradScaler reads stays what it was.
    unwritten = "found_inf" if func._schema.name.startswith("aten::_amp_foreach_non_finite_check") else ""
    return tuple(
        (position, argument.name)
        for position, argument in all_arguments
        if argument.name in unsaid
        or (argument.alias_info is not None and argument.alias_info.is_write and argument.name != unwritten)
    )


@functools.cache
def makes_views(func: Any) -> bool:
    """Whether the result is a view of the first argument."""
    aliases = [argument.alias_info for argument in func._schema.arguments[:1]]
    return any(alias is not None and not alias.is_write for alias in aliases)


def touches_real_memory_alone(func: Any, operands: Sequence[Tensor], args: Any, kwargs: Any) -> bool:
    """Whether an operation reads or writes the memory of real tensors alone, so that they stay real."""
    if not operands or type(operands[0]) is FakeTensor or not all(map(is_real, operands)):
        return False
    storages = [each for each in args if isinstance(each, torch.UntypedStorage)]
    return aliases(func) and "device" not in kwargs and all(each.device.type == "cpu" for each in storages)


def is_quantised(func: Any, operands: Sequence[Tensor], kwargs: Any) -> bool:
    """Whether quantised tensors are read or made. Fake ones count wrong: they keep the dtype from before."""
    if not _QUANTISED.isdisjoint([tensor.dtype for tensor in operands]) or kwargs.get("dtype") in _QUANTISED:
        return True
    return _quantises(func)


@functools.cache
def _quantises(func: Any) -> bool:
    name = func._schema.name.removeprefix("aten::")
    return name.startswith(("quantize_per_", "_make_per_")) or "_affine_quantized" in name


@functools.cache
def is_custom(func: Any) -> bool:
    """Whether another library than torch registered the operation."""
    return func.namespace not in _TORCH_S_OWN


def warn_of_custom(func: Any) -> None:
    """Warn of another library's operation: fake tensors run the rule for the look of its result, not the kernel."""
    if is_custom(func):
        warnings.warn(
            f"simulated CUDA counts what {func} at {line_here()} returns, not what its kernel takes meanwhile: call "
            "the function that it is made of, or measure on a GPU",
            stacklevel=6,
        )


def unmodelled(func: Any, args: Any) -> NotImplementedError:
    """The refusal of an operation, with its name and the user's line."""
    kind = " of sparse tensors" if any(tensor.layout is not torch.strided for tensor in tensors(args)) else ""
    return NotImplementedError(f"simulated CUDA does not model {func}{kind}, at {line_here()}: measure on a GPU")


def is_fault(error: Exception) -> bool:
    """Whether a rule of torch's for fake tensors has failed, and not the operation, whose kernels raise none of these.

    A TypeError is such a fault where the rule does not take the operation's arguments, so that it did not begin.
    """
    if isinstance(error, TypeError):
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        return last is not None and last.tb_frame.f_code.co_filename == torch._ops.__file__
    return isinstance(error, ArithmeticError | AssertionError | AttributeError | KeyError)


def check_sparse(func: Any, result: Tensor) -> None:
    """Raise NotImplementedError where an operation has made a sparse result's parts: no mode sees those, only given
    ones."""
    if func._schema.name.removeprefix("aten::").removesuffix("_") not in _SPARSE_OF_PARTS:
        raise unmodelled(func, [result])


def with_real_strides(base: Tensor, view: Tensor) -> Tensor:
    """A fake view of `base` with the strides of a real one.

    They differ where a size is 1, and torch tells by them whether channels come last: whether a convolution copies.
    """
    if 1 not in view.shape or not view.numel():
        return view
    strides = _strides_of_view(base.shape, base.stride(), view.shape)
    return view if view.stride() == strides else view.as_strided(view.shape, strides)


@functools.lru_cache(maxsize=4096)
def _strides_of_view(shape: Any, strides: Any, new_shape: Any) -> tuple[int, ...]:
    with _disable_current_modes():
        return torch.empty_strided(shape, strides, device="meta").view(new_shape).stride()
