"""What CUDA's kernels hold for a moment beside their result, by torch's sources.

`benchmarks/cardless` holds it against what torch's own CUDA code allocates. Not here, and not counted: workspaces that
cuDNN chooses, and what depends on how many blocks of a kernel fit a multiprocessor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format  # by strides, also where a size is 1, as torch's own
from torch.utils._python_dispatch import _disable_current_modes

from vram.simulated import attention
from vram.simulated.cards import Card
from vram.simulated.cub import scan_by_key_bytes, scan_bytes, segmented_sort_bytes, select_bytes, sort_bytes
from vram.simulated.cublas import copies
from vram.simulated.reductions import buffers

_aten = torch.ops.aten
_DEVICE = torch.device("cuda", 0)
_MOST_NORMALISED_BY_CUDNN = 65535  # samples
_HALF = (torch.float16, torch.bfloat16)
_MASKS = (torch.bool, torch.uint8)


class Call(NamedTuple):
    """An operation that has run. `known` tells what a tensor holds."""

    func: Any
    args: Any
    kwargs: Any
    result: Any
    card: Card
    known: Callable[[Tensor], Tensor | None]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """By either way of giving it."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


Step = tuple[Any, tuple[Any, ...], dict[str, Any]]
Steps = Iterator[Step]


def scratch(call: Call) -> Steps:
    """The operations that a card runs besides, and whose results it drops when the operation ends.

    A mask of which it is not known what it holds counts as true everywhere.
    """
    rule = _RULES.get(_name(call.func))
    if rule is not None:
        yield from rule(call)
        return
    if n_bytes := attention.sum_bytes(call.func, call.args):
        yield _bytes(n_bytes)
    for operand in copies(call.func, call.args):
        yield _clone(operand)


def allocated(func: Any, result: Any, args: Any) -> Any:
    """Of what an operation returns to a fake tensor, what it allocates on a card."""
    if func is _aten.native_batch_norm.default and _by_cudnn(args):
        return result[:1]  # no mean and deviation of this batch
    return attention.allocated(func, result, args)


def _by_cudnn(args: Any) -> bool:
    """Whether cuDNN normalises, and that with the means that are given: `_select_batch_norm_backend`."""
    x, weight, bias, mean, variance, training = args[:6]
    return (
        not training
        and all(each is not None for each in (weight, bias, mean, variance))
        and torch.backends.cudnn.enabled
        and x.dtype != torch.bfloat16 != weight.dtype
        and (x.dtype != torch.float16 or weight.dtype == torch.float32)
        and x.dim() >= 3
        and x.shape[0] <= _MOST_NORMALISED_BY_CUDNN
    )


# By rows (SoftMax.cu, layer_norm_kernel.cu)


def _by_rows(call: Call) -> Steps:
    yield from _contiguous(call.args[0])


def _by_groups(call: Call) -> Steps:
    """A factor and a summand of each channel, where there are several elements to each (group_norm_kernel.cu)."""
    x, weight, bias, n, channels, elements = call.args[:6]
    if elements > 1 and n and not (weight is None and bias is None):
        for _ in range(2):
            yield _empty((n, channels), torch.float32 if x.dtype in _HALF else x.dtype)


# Reductions (ReduceOps.cpp, Reduce.cuh)


def _summed(call: Call) -> Steps:
    x, dtype = call.args[0], call.result.dtype
    if dtype != x.dtype and not (x.dtype in _HALF and dtype == torch.float32):
        yield _empty(x.shape, dtype)  # truths and small numbers are widened first
    else:
        dtype = x.dtype
    yield from _shared(call, _dims(call), max(4, dtype.itemsize), x)


def _normed(call: Call) -> Steps:
    yield from _shared(call, _dims(call, 2), max(4, call.result.dtype.itemsize), call.args[0])


def _deviating(call: Call) -> Steps:
    x = call.args[0]
    dims = () if isinstance(call.argument(1, "dim"), bool) else _dims(call)
    yield from _shared(call, dims, 32 if x.dtype == torch.float64 else 16, x)


def _extreme(call: Call) -> Steps:
    x = call.args[0]
    of_two = isinstance(call.argument(1, "other"), Tensor)
    if not of_two:
        placed = isinstance(call.result, tuple) or call.result.dtype != x.dtype
        yield from _shared(call, _dims(call), 16 if placed else x.dtype.itemsize, x)


def _true(call: Call) -> Steps:
    yield from _shared(call, _dims(call), call.args[0].dtype.itemsize, call.args[0])


def _counted(call: Call) -> Steps:
    x = call.args[0]
    if x.dtype != torch.bool:
        yield _empty(x.shape, torch.bool)
    yield _empty(x.shape, torch.int64)
    yield from _shared(call, _dims(call), 8, x)


def _log_summed(call: Call) -> Steps:
    x, result = call.args[0], call.result
    if x.dtype != result.dtype:
        yield _empty(x.shape, result.dtype)
    yield _empty(x.shape, result.dtype)  # less the greatest
    yield _empty(result.shape, result.dtype)
    yield from _shared(call, _dims(call), max(4, result.dtype.itemsize), x)


def _equal(call: Call) -> Steps:
    first, second = call.args[:2]
    if first.shape == second.shape and first.numel():
        yield _empty(first.shape, torch.bool)
        yield _empty((), torch.bool)


def _dims(call: Call, position: int = 1) -> tuple[int, ...]:
    dims = call.argument(position, "dim")
    return (dims,) if type(dims) is int else tuple(dims or ())


def _shared(call: Call, dims: tuple[int, ...], value_bytes: int, x: Tensor) -> Steps:
    for n_bytes in buffers(x, dims, value_bytes, call.card) or ():
        yield _bytes(n_bytes)


# Prefix sums (ScanKernels.cpp, ScanUtils.cuh)


def _scanned(call: Call) -> Steps:
    x, result = call.args[0], call.result
    if x.dtype != result.dtype:
        yield _empty(x.shape, result.dtype)
    elif not x.is_contiguous():
        yield _clone(x)
    if x.dim() and x.numel() and x.shape[call.args[1]] == x.numel():  # one row is left to CUB
        yield _bytes(_scan_bytes(x.numel(), result.dtype))


def _scan_bytes(n: int, dtype: torch.dtype) -> int:
    return scan_bytes(n, dtype.itemsize, apart=dtype in _HALF or dtype.is_complex)


# Masks and places (IndexKernel.cpp, TensorAdvancedIndexing.cpp, Nonzero.cu)


def _scattered_by_mask(call: Call) -> Steps:
    into, mask, source = call.args[:3]
    shape = torch.broadcast_shapes(into.shape, mask.shape)  # type: ignore[no-untyped-call]
    yield _empty(shape, torch.int64)  # where each element of the source goes
    yield from _contiguous(mask.expand(shape))
    yield from _contiguous(source)
    yield _bytes(scan_bytes(mask.expand(shape).numel(), 8))


def _placed(call: Call) -> Steps:
    yield from _placing(call, call.args[0].numel())


def _placing(call: Call, n: int) -> Steps:
    yield _empty((), torch.int32)  # how many there are
    yield _bytes(select_bytes(n, call.card.compute_capability))


def _indexed(call: Call) -> Steps:
    x, indices = call.args[:2]
    asked = None
    for index in indices:
        if index is None:
            continue
        mask = index.dtype in _MASKS
        if mask or index.device != x.device or index.dtype != torch.int64:
            shape = (index.dim(), _trues(index, call.known(index))) if mask else index.shape
            yield _empty(shape, torch.int64)
            if mask and index.device == x.device:
                asked = index
    # Several are to lie alike, when they are as large as one another.
    places = [index for index in indices if index is not None and index.dtype not in _MASKS]
    if len(places) > 1:
        spread = torch.broadcast_tensors(*places)  # type: ignore[no-untyped-call]
        if len({each.stride() for each in spread}) > 1:
            for each in spread:
                if not each.is_contiguous():
                    yield _empty(each.shape, torch.int64)
    if asked is not None:  # what finding the places of one took is gone before the next
        yield from _placing(call, asked.numel())


def _put(call: Call) -> Steps:
    into, indices, value = call.args[:3]
    found = [index for index in indices if index is not None]
    accumulated = call.argument(3, "accumulate", False)
    if value.device.type == "cpu":
        if len(found) == 1 and found[0].dtype in _MASKS and found[0].device == into.device and not accumulated:
            return  # a fill where the mask is true
        yield _empty(value.shape, value.dtype)
    if not accumulated or not found:
        yield from _indexed(call)
        return
    # Indexing.cu sorts where each value goes. What became of masks is gone by then.
    wide = [index.dim() if index.dtype in _MASKS else 1 for index in found]
    shapes = [[_trues(index, call.known(index))] if index.dtype in _MASKS else index.shape for index in found]
    n = torch.broadcast_shapes(*shapes).numel()  # type: ignore[no-untyped-call]
    first = next(at for at, index in enumerate(indices) if index is not None)
    sizes = into.shape[first : first + sum(wide)]
    if value.numel() < n * (rest := math.prod(into.shape) // math.prod(sizes)):
        yield _empty((n, rest), value.dtype)
    for _ in range(4):
        yield _empty((n,), torch.int64)
    yield _bytes(sort_bytes(n, 8, call.card.compute_capability, bits=math.prod(sizes).bit_length()))


def _is_in(call: Call) -> Steps:
    elements, tests = call.args[:2]
    if isinstance(elements, Tensor) and isinstance(tests, Tensor) and tests.numel() < 10 * elements.numel() ** 0.145:
        yield _bytes(elements.numel() * tests.numel())
        yield _bytes(elements.numel())


def _trues(mask: Tensor, value: Tensor | None) -> int:
    with _disable_current_modes():
        return mask.numel() if value is None else int(value.count_nonzero())


# Order and chance (Sort.cpp, Sort.cu, TensorTopK.cu, Distributions.cpp)

_MOST_SORTED_WITHIN_BLOCKS = 4096
_LEAST_SORTED_BY_SEGMENTS = 128  # rows
# Up to so many rows, several blocks look for the greatest of a row that is at least so long.
_LONG_ROWS = ((20, 20_000), (40, 10_000), (80, 8_000), (199, 5_000), (799, 3_000), (4_000, 800))
_LONG_ROW = 400
_THREADS, _BLOCKS = 256, 6  # of the kernel that looks for the greatest, and how many fit a multiprocessor


def _sorted(call: Call) -> Steps:
    yield from _sorting(call, call.args[0], call.argument(1, "dim", -1))


def _sorting(call: Call, x: Tensor, dim: int) -> Steps:
    if not x.dim() or x.numel() < 2:
        return
    n, length = x.numel(), x.shape[dim]
    if length <= _MOST_SORTED_WITHIN_BLOCKS:
        yield _empty((length,), torch.int64)
        return
    capability, key_bytes = call.card.compute_capability, x.dtype.itemsize
    if dim % x.dim() != x.dim() - 1 or not x.is_contiguous():
        for dtype in (x.dtype, x.dtype, torch.int64):
            yield _empty(x.shape, dtype)
    yield _empty(x.shape, torch.int64)
    if n // length >= _LEAST_SORTED_BY_SEGMENTS:
        yield _bytes(segmented_sort_bytes(n, key_bytes))
        return
    if n > length:  # all rows at once: by value, then by row
        yield _empty(x.shape, torch.int64)
        yield _empty(x.shape, x.dtype)
    yield _bytes(sort_bytes(n, key_bytes, capability))


def _topmost(call: Call) -> Steps:
    yield from _choosing(call, call.args[0], call.argument(2, "dim", -1))


def _choosing(call: Call, x: Tensor, dim: int) -> Steps:
    if not x.dim() or not x.numel():
        return
    length = x.shape[dim]
    rows = x.numel() // length
    if not x.is_contiguous():
        yield _clone(x)
    enough = next((long for most, long in _LONG_ROWS if rows <= most), _LONG_ROW)
    if length >= enough:
        at_once = call.card.multiprocessors * _BLOCKS * _THREADS
        items = max(4, min(-(-x.numel() // at_once), 64))
        blocks = rows * -(-length // (items * _THREADS))
        n_bytes = (rows * x.dtype.itemsize, rows * 8, rows * 2 * max(4, x.dtype.itemsize))
        for each in (*n_bytes, blocks * 512, rows * 1024, blocks * 4, blocks * 4, scan_by_key_bytes(blocks)):
            yield _bytes(each)


def _drawn(call: Call) -> Steps:
    x, n = call.args[:2]
    if call.argument(2, "replacement", False) and n > 1:
        for _ in range(3):
            yield _empty(x.shape, x.dtype)
        if x.numel() == x.shape[-1]:
            yield _bytes(_scan_bytes(x.numel(), x.dtype))
        return
    for _ in range(2):  # whether the probabilities are fine
        yield _empty((), torch.bool)
    yield _empty(x.shape, x.dtype)  # each by a number that is drawn for it
    if n > 1:
        yield _empty((*x.shape[:-1], n), x.dtype)
        yield from _choosing(call, x, -1)


# Others


def _convolved(call: Call) -> Steps:
    """cuDNN reads both as one of them lies: `cudnn_conv_suggest_memory_format` of native/ConvUtils.h."""
    operands = call.args[:2]
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(operands[0].dim())
    asked = {suggest_memory_format(each) for each in operands if each.dtype != torch.float64}
    lies = last if last is not None and last in asked else torch.contiguous_format
    for each in operands:
        if not each.is_contiguous(memory_format=lies):
            yield _clone(each, lies)


def _distances(call: Call) -> Steps:
    """By a matrix product of each point beside its norm and a one (Distance.cpp)."""
    for each in call.args[:2]:
        yield _empty((*each.shape[:-1], each.shape[-1] + 2), each.dtype)


# Between the CPU and the card (Copy.cu)


def _moved(call: Call) -> Steps:
    yield from _copying(call, call.result, call.args[0], bool(call.kwargs.get("non_blocking")))


def _copied(call: Call) -> Steps:
    into, source = call.args[:2]
    yield from _copying(call, into, source.expand(into.shape), bool(call.argument(2, "non_blocking", False)))


def _copying(call: Call, into: Tensor, source: Tensor, on_card: bool) -> Steps:
    """`on_card`: it casts there, as what does not block does, and else on the CPU."""
    same = into.dtype == source.dtype
    if into.device == source.device or not into.numel() or (same and _alike(into, source)):
        return
    if into.device.type == "cuda":
        if not into.is_contiguous() or (on_card and not same):
            yield _empty(into.shape, source.dtype if on_card else into.dtype)
    elif on_card and not same:
        yield _empty(source.shape, into.dtype)
    elif not source.is_contiguous():
        yield _clone(source)


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether both lie without gaps, in the same order."""
    expected = 1
    for stride, size in sorted(zip(first.stride(), first.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return first.stride() == second.stride()


def _empty(shape: Any, dtype: torch.dtype) -> Step:
    return _aten.empty.memory_format, (list(shape),), {"dtype": dtype, "device": _DEVICE}


def _bytes(n: int) -> Step:
    return _empty((n,), torch.uint8)


def _clone(x: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Step:
    return _aten.clone.default, (x,), {"memory_format": memory_format}


def _contiguous(x: Tensor) -> Steps:
    if not x.is_contiguous():
        yield _clone(x)


@functools.cache
def _name(func: Any) -> str:
    """Without its variant: "index_put" of aten.index_put_.default too."""
    name: str = func._schema.name.removeprefix("aten::")
    return name.removesuffix("_")


_RULES: dict[str, Callable[[Call], Steps]] = {
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax", "native_layer_norm", "_fused_rms_norm"), _by_rows),
    **dict.fromkeys(("sum", "nansum", "mean", "prod"), _summed),
    **dict.fromkeys(("std", "var", "std_mean", "var_mean"), _deviating),
    **dict.fromkeys(("amax", "amin", "max", "min", "argmax", "argmin"), _extreme),
    **dict.fromkeys(("all", "any"), _true),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp", "_logcumsumexp"), _scanned),
    **dict.fromkeys(("index_put", "_index_put_impl"), _put),
    "native_group_norm": _by_groups,
    "linalg_vector_norm": _normed,
    "norm": _normed,
    "count_nonzero": _counted,
    "logsumexp": _log_summed,
    "equal": _equal,
    "masked_scatter": _scattered_by_mask,
    "nonzero": _placed,
    "index": _indexed,
    "isin": _is_in,
    "sort": _sorted,
    "topk": _topmost,
    "multinomial": _drawn,
    "_to_copy": _moved,
    "copy": _copied,
    "convolution": _convolved,
    "_euclidean_dist": _distances,
}
