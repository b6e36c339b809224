"""Values where kernels are not run: whole numbers and truths are computed on the CPU, in the memory of no card.

The host reads them, and decides by them. Numbers of other kinds stay what the memory happens to hold.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd import graph
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from vram.simulated.context import TOKEN
from vram.simulated.replacements import Places, always, replaced

_aten = torch.ops.aten
_MOST = 1 << 20  # elements
_BY_MASKS = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_OF_ONE = {_aten.nonzero.default, _aten.argwhere.default, _aten.nonzero_numpy.default, _aten.where.default}
_CHOICES = {_aten.argmax.default, _aten.multinomial.default}
_NOT_RUN = (RuntimeError, IndexError, NotImplementedError)  # on values that are none


class Values(TorchDispatchMode):
    """Inside, on a runtime without a card, whole numbers and truths hold what a card would have computed.

    Of choices among activations, as `topk`, they hold some choice; `argmax` and `multinomial` choose the simulation's.
    """

    def __init__(self) -> None:
        super().__init__()
        self._runtime = ctypes.CDLL(os.environ["LD_PRELOAD"].split(":")[0])
        self._runtime.cardless_say.argtypes = [ctypes.c_longlong]
        self._places = ExitStack()

    def __enter__(self) -> Self:
        places: Places = {(torch.autograd, "_engine_run_backward"): _unseen}
        if find_spec("triton") is not None:  # torch has kernels of it, too, which are not run either
            places[import_module("triton.runtime.jit").JITFunction, "run"] = always(None)
        self._places.enter_context(replaced(places))
        return super().__enter__()

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        self._places.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for mask in _masks(func, args):
            self._runtime.cardless_say(int(seen(mask).count_nonzero()))
        result = func(*args, **kwargs)
        self._runtime.cardless_forget()
        if func is _aten._amp_foreach_non_finite_check_and_unscale_.default:
            seen(args[1]).zero_()  # gradients are finite, as the simulation assumes
        made = [each for each in tree_leaves(result) if _on_card(each)]
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if any(map(_whole, made)) and all(each.numel() <= _MOST for each in made + given):
            _compute(func, args, kwargs, made)
        return result


def _unseen(*args: Any, **kwargs: Any) -> Any:
    """A backward pass without any mode: autograd takes tensors for a subclass's where there is one."""
    with _disable_current_modes():
        return graph._engine_run_backward(*args, **kwargs)


def seen(tensor: Tensor) -> Tensor:
    """A tensor of the CPU in the same memory."""
    if not _on_card(tensor):
        return tensor
    storage = tensor.untyped_storage()
    if not storage.nbytes():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=storage.nbytes() // tensor.dtype.itemsize)
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _compute(func: Any, args: Any, kwargs: Any, made: list[Tensor]) -> None:
    here = torch.device("cpu")
    given, named = tree_map_only(Tensor, seen, (args, kwargs))
    given, named = tree_map_only(torch.device, lambda device: here if device.type == "cuda" else device, (given, named))
    try:
        computed = [each for each in tree_leaves(func(*given, **named)) if isinstance(each, Tensor)]
    except _NOT_RUN:
        computed = [torch.zeros_like(seen(each)) for each in made]
    if func in _CHOICES and any(each.is_floating_point() for each in tree_leaves(args) if isinstance(each, Tensor)):
        computed = [torch.full_like(each, min(TOKEN, args[0].shape[-1] - 1)) for each in map(seen, made)]
    for ours, theirs in zip(map(seen, made), computed, strict=True):
        if _whole(ours) and ours.shape == theirs.shape and ours.data_ptr() != theirs.data_ptr():
            ours.copy_(theirs)


def _masks(func: Any, args: Any) -> list[Tensor]:
    """Masks whose true elements the operation counts, in that order."""
    if func in _OF_ONE:
        masks = [args[0]]
    elif func is _aten.masked_select.default:
        masks = [torch.broadcast_tensors(args[0], args[1])[1]]
    elif func in _BY_MASKS:
        masks = [each for each in args[1] if each is not None and each.dtype in (torch.bool, torch.uint8)]
    else:
        masks = []
    return [mask for mask in masks if _on_card(mask)]


def _on_card(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"


def _whole(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())
