"""What CUDA's kernels hold for a moment beside their result, where torch's sources tell how much.

Not here, and not counted: cuDNN's workspaces and what cub's algorithms take (sort, topk, unique, cumsum, nonzero,
multinomial), which depend on the library's version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from vram.simulated import attention
from vram.simulated.cards import Card
from vram.simulated.cublas import copies

_aten = torch.ops.aten
Step = tuple[Any, tuple[Any, ...], dict[str, Any]]
# They read their first argument by rows, and make a copy of what does not lie so (SoftMax.cu, layer_norm_kernel.cu).
_BY_ROWS = {_aten._softmax.default, _aten._log_softmax.default, _aten.native_layer_norm.default}
_BY_ROWS |= {_aten._safe_softmax.default, _aten._fused_rms_norm.default}
_PUTS = {_aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_SCATTERS = {_aten.masked_scatter.default, _aten.masked_scatter_.default}


def scratch(func: Any, args: Any, card: Card, known: Callable[[Tensor], Tensor | None]) -> Iterator[Step]:
    """The operations that `func` itself runs on a card, and whose results it drops when it ends.

    `known` tells what a tensor holds. A mask of which that is not known counts as true everywhere.
    """
    if func in _BY_ROWS:
        yield from _contiguous(args[0])
    elif func in _SCATTERS:  # IndexKernel.cpp: where each element of the source goes
        shape = torch.broadcast_shapes(args[0].shape, args[1].shape)  # type: ignore[no-untyped-call]
        yield _aten.empty.memory_format, (shape,), {"dtype": torch.int64, "device": args[0].device}
        yield from _contiguous(args[1].expand(shape))
        yield from _contiguous(args[2])
    elif func is _aten.index.Tensor or (func in _PUTS and not _fills(args)):
        for index in args[
            1
        ]:  # TensorAdvancedIndexing.cpp: masks become indices, and indices come to the tensor's device
            if index is None:
                continue
            mask = index.dtype in (torch.bool, torch.uint8)
            if mask or index.device != args[0].device:
                shape = (index.dim(), _trues(index, known(index))) if mask else index.shape
                yield _aten.empty.memory_format, (shape,), {"dtype": torch.int64, "device": args[0].device}
    else:
        for shape, dtype in attention.scratch(func, args, card.multiprocessors):
            yield _aten.empty.memory_format, (shape,), {"dtype": dtype, "device": args[0].device}
        for operand in copies(func, args):
            yield _aten.clone.default, (operand,), {"memory_format": torch.contiguous_format}


def _contiguous(tensor: Tensor) -> Iterator[Step]:
    if not tensor.is_contiguous():
        yield _aten.clone.default, (tensor,), {"memory_format": torch.contiguous_format}


def _trues(mask: Tensor, value: Tensor | None) -> int:
    with _disable_current_modes():
        return mask.numel() if value is None else int(value.count_nonzero())


def _fills(args: Any) -> bool:
    """Whether it is a fill where one mask is true, which needs no indices."""
    into, indices, value = args[:3]
    masks = [index for index in indices if index is not None]
    accumulate = len(args) > 3 and args[3]
    return value.device.type == "cpu" and len(masks) == 1 and masks[0].device == into.device and not accumulate
