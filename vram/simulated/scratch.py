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
Steps = Iterator[Step]


def preparation(call: Call) -> Steps:
    """What a card runs, and drops, before it takes memory for the result."""
    rule = _BEFORE.get(_name(call.func))
    return iter(()) if rule is None else rule(call)


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
    """Of what an operation returns to a fake tensor, what a card allocates: what keeps more than it shows grows."""
    kept = _KEPT.get(_name(func))
    if kept is not None and (n_bytes := kept(args, result)) > result.untyped_storage().nbytes():
        result.untyped_storage().resize_(n_bytes)
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
    """group_norm_kernel.cu: one factor and one term a channel, of the statistics and the weights."""
    x, weight, bias, samples, channels, pixels, groups = call.args[:7]
    wide = torch.float32 if x.dtype in _HALF else x.dtype
    yield from _contiguous(x)
    for shape, needed in (
        ((samples, groups), x.dtype != wide and call.version >= (2, 13)),
        ((samples, channels), pixels > 1 and not (weight is None and bias is None)),
    ):
        if needed:
            yield _empty(shape, wide)
            yield _empty(shape, wide)


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
    x = call.args[0]
    yield from _shared(call, _dims(call), x.dtype.itemsize if call.version < (2, 12) else 1, x)


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


# Losses (Loss.cpp): those of all elements are there before their mean


def _lost(call: Call) -> Steps:
    if call.argument(2, "reduction", 1):
        yield from _mean_of_losses(call)


def _lost_in_place(call: Call) -> Steps:
    """The mean is made apart, and copied to where the losses are."""
    if call.argument(3, "reduction", 1):
        yield _empty((), call.result.dtype)
        yield from _mean_of_losses(call, 0)


def _mean_of_losses(call: Call, times: int = 1) -> Steps:
    losses = _meta(_loss_shape(call.args), call.result.dtype)
    for _ in range(times):
        yield _empty(losses.shape, losses.dtype)
    yield from _shared(call, (), max(4, losses.dtype.itemsize), losses)


def _loss_bytes(args: Any, result: Tensor) -> int:
    """The mean is written where there was room for the loss of each element."""
    return int(_loss_shape(args).numel()) * result.dtype.itemsize


def _loss_shape(args: Any) -> torch.Size:
    return torch.broadcast_shapes(args[0].shape, args[1].shape)  # type: ignore[no-untyped-call,no-any-return]


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


def _repeated(call: Call) -> Steps:
    repeats = call.args[0]
    for _ in range(1 if repeats.dtype == torch.int64 else 2):  # a copy of other numbers, and where each one ends
        yield _empty(repeats.shape, torch.int64)


def _summed_to_repeat(call: Call) -> Steps:
    yield from _repeated(call)
    yield _bytes(scan_bytes(call.args[0].numel(), 8))


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


def _averaged(call: Call) -> Steps:
    """How many values meet at each place: ones are added there as the values are."""
    into, source, reduce = call.args[0], call.args[3], call.argument(4, "reduce")
    if reduce == "mean":
        yield _empty(into.shape, into.dtype)
        ones_bytes, none_bytes = source.numel() * source.dtype.itemsize, into.numel()
        if _name(call.func) == "index_reduce":  # there, one is gone before the other is asked for
            yield _bytes(max(ones_bytes, none_bytes))
        else:
            yield _bytes(ones_bytes)
            yield _bytes(none_bytes)


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
    if not x.dim() or not x.numel():
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


def _middle(call: Call) -> Steps:
    x = call.args[0]
    if len(call.args) == 1 and not call.kwargs:  # of all: they are sorted as one row
        yield from _contiguous(x)
        flat = _meta((x.numel(),), x.dtype)
        yield _empty(flat.shape, flat.dtype)
        yield _empty(flat.shape, torch.int64)
        yield from _sorting(call, flat, 0)


def _shuffled(call: Call) -> Steps:
    """By random keys, of as many bits as make it unlikely that two are alike (Randperm.cu)."""
    n, dtype = call.result.numel(), call.result.dtype
    if n:
        bits = min(64, math.ceil(math.log2(n - (6 * n * n + 1) / (12 * math.log(0.9)))))
        keys = torch.int64 if bits > 32 else torch.int32
        for each in (dtype, keys, keys):
            yield _empty((n,), each)
        yield _bytes(sort_bytes(n, keys.itemsize, call.card.compute_capability, bits, dtype.itemsize))


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
        if call.version >= (2, 12):  # the least and the greatest
            yield _empty((), x.dtype)
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


def _dropped_out(call: Call) -> Steps:
    if call.argument(3, "dropout_p", 0.0):
        yield _empty((2,), torch.int64)  # where the kernel begins to draw


def _of_windows(call: Call) -> Steps:
    """The result begins as large as the input, and is made anew where it is larger (Im2Col.cu, Col2Im.cu)."""
    x = call.args[0]
    yield from _contiguous(x)
    if call.result.numel() > x.numel():
        yield _empty(x.shape, x.dtype)


def _rolled(call: Call) -> Steps:
    """Dimension by dimension; of none, as one row (TensorTransformations.cpp)."""
    x, dims = call.args[0], call.argument(2, "dims", ())
    if len(dims) < 2:
        yield from _contiguous(x)
    for _ in dims[1:]:
        yield _empty(x.shape, x.dtype)


def _normal(call: Call) -> Steps:
    if call.func is _aten.normal.Tensor_float:
        yield _empty(call.result.shape, call.result.dtype)


def _drawn_by(call: Call) -> Steps:
    """Half precision is widened to draw by it."""
    position = {_aten.bernoulli.default: 0, _aten.bernoulli_.Tensor: 1}.get(call.func)
    if position is not None and call.args[position].dtype in _HALF:
        yield _empty(call.args[position].shape, torch.float32)


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


def _meta(shape: Any, dtype: torch.dtype) -> Tensor:
    """A shape alone, of what lies without gaps."""
    with _disable_current_modes():
        return torch.empty(shape, dtype=dtype, device="meta")


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
    "native_group_norm": _by_groups,
    **dict.fromkeys(("_softmax", "_log_softmax", "native_layer_norm", "_fused_rms_norm"), _by_rows),
    **dict.fromkeys(("sum", "nansum", "mean", "prod"), _summed),
    **dict.fromkeys(("std", "var", "std_mean", "var_mean"), _deviating),
    **dict.fromkeys(("amax", "amin", "max", "min", "argmax", "argmin"), _extreme),
    **dict.fromkeys(("all", "any"), _true),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp", "_logcumsumexp"), _scanned),
    **dict.fromkeys(("index_put", "_index_put_impl"), _put),
    **dict.fromkeys(("scatter_reduce", "index_reduce"), _averaged),
    **dict.fromkeys(("mse_loss", "smooth_l1_loss", "huber_loss"), _lost),
    "binary_cross_entropy": _lost_in_place,
    **dict.fromkeys(("im2col", "col2im"), _of_windows),
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
    "_scaled_dot_product_flash_attention": _dropped_out,
    "_euclidean_dist": _distances,
    "repeat_interleave": _repeated,
    "randperm": _shuffled,
    "roll": _rolled,
    "normal": _normal,
    "bernoulli": _drawn_by,
}

_BEFORE: dict[str, Callable[[Call], Steps]] = {
    **dict.fromkeys(("median", "nanmedian"), _middle),
    "repeat_interleave": _summed_to_repeat,
}

_KEPT: dict[str, Callable[[Any, Any], int]] = {
    **dict.fromkeys(("mse_loss", "smooth_l1_loss", "binary_cross_entropy"), _loss_bytes),
    **dict.fromkeys(("im2col", "col2im"), lambda args, result: args[0].numel() * result.dtype.itemsize),
}
