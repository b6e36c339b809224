"""Rules for prefix sums, masks and places."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from vram.simulated.kernels.call import HALF, Call, Rules, Steps, clone, contiguous, empty, name, of_bytes
from vram.simulated.kernels.cub import scan_bytes, select_bytes, sort_bytes

MASKS = (torch.bool, torch.uint8)


# Prefix sums (ScanKernels.cpp, ScanUtils.cuh)


def _scanned(call: Call) -> Steps:
    x, result = call.args[0], call.result
    if x.dtype != result.dtype:
        yield empty(x.shape, result.dtype)
    elif not x.is_contiguous():
        yield clone(x)
    if x.dim() and x.numel() and x.shape[call.args[1]] == x.numel():  # one row is left to CUB
        yield of_bytes(scan_bytes_of(x.numel(), result.dtype))


def scan_bytes_of(n: int, dtype: torch.dtype) -> int:
    """Bytes for CUB's prefix sum over `n` numbers of that kind."""
    return scan_bytes(n, dtype.itemsize, apart=dtype in HALF or dtype.is_complex)


def _repeated(call: Call) -> Steps:
    repeats = call.args[0]
    for _ in range(1 if repeats.dtype == torch.int64 else 2):  # a copy of other numbers, and where each one ends
        yield empty(repeats.shape, torch.int64)


def _summed_to_repeat(call: Call) -> Steps:
    yield from _repeated(call)
    yield of_bytes(scan_bytes(call.args[0].numel(), 8))


def _segmented(call: Call) -> Steps:
    """Lengths of segments of which offsets are given, and a byte to check them, or the other way round
    (SegmentReduce.cpp, SegmentReduce.cu).
    """
    lengths, offsets = call.kwargs.get("lengths"), call.kwargs.get("offsets")
    if offsets is not None:
        yield empty((*offsets.shape[:-1], offsets.shape[-1] - 1), offsets.dtype)
        if name(call.func) == "segment_reduce":
            yield of_bytes(1)
    elif lengths is not None:
        yield empty((*lengths.shape[:-1], lengths.shape[-1] + 1), lengths.dtype)
        yield of_bytes(scan_bytes(lengths.numel(), lengths.itemsize))


# Masks and places (IndexKernel.cpp, TensorAdvancedIndexing.cpp, Nonzero.cu)


def _scattered_by_mask(call: Call) -> Steps:
    into, mask, source = call.args[:3]
    shape = torch.broadcast_shapes(into.shape, mask.shape)  # type: ignore[no-untyped-call]
    yield empty(shape, torch.int64)  # where each element of the source goes
    yield from contiguous(mask.expand(shape))
    yield from contiguous(source)
    yield of_bytes(scan_bytes(mask.expand(shape).numel(), 8))


def _chosen_back(call: Call) -> Steps:
    """Those of the gradient whose places a mask says: found before there is memory for the result."""
    mask = call.args[1].expand(call.args[0].shape)
    yield from contiguous(mask)
    yield empty((_chosen(call), mask.dim()), torch.int64)
    yield from _placing(call, mask.numel())
    yield -1
    yield -1
    yield empty((_chosen(call),), call.result.dtype)


def _filled_up(call: Call) -> Steps:
    """They, and zeros for the rest of the source, are joined; without a rest they are the result."""
    rest = call.result.numel() - _chosen(call)
    if rest > 0:
        yield empty((_chosen(call),), call.result.dtype)
        yield empty((rest,), call.result.dtype)


def _chosen(call: Call) -> int:
    """How many elements of the gradient a mask chooses."""
    gradient, mask = call.args[:2]
    value = call.known(mask)
    with _disable_current_modes():
        return gradient.numel() if value is None else int(value.expand(gradient.shape).count_nonzero())


def _placed(call: Call) -> Steps:
    x = call.args[0]
    yield from contiguous(x)
    if x.dim():
        yield from _placing(call, x.numel())
    else:  # true or not, it has no places (Nonzero.cu); a sum of one takes a byte
        yield empty((), torch.int32)
        yield of_bytes(1)


def _placing(call: Call, n: int) -> Steps:
    yield empty((), torch.int32)  # how many there are
    yield of_bytes(select_bytes(n, call.card.compute_capability))


def _indexed(call: Call) -> Steps:
    x, indices = call.args[:2]
    mask_here = None
    for index in indices:
        if index is None:
            continue
        mask = index.dtype in MASKS
        if mask or index.device != x.device or index.dtype != torch.int64:
            shape = (index.dim(), _trues(index, call.known(index))) if mask else index.shape
            yield empty(shape, torch.int64)
            if mask and index.device == x.device:
                mask_here = index
    # Several must have the same strides, once they have the same shape.
    places = [index for index in indices if index is not None and index.dtype not in MASKS]
    if len(places) > 1:
        spread = torch.broadcast_tensors(*places)  # type: ignore[no-untyped-call]
        if len({each.stride() for each in spread}) > 1:
            for each in spread:
                if not each.is_contiguous():
                    yield empty(each.shape, torch.int64)
    if mask_here is not None:  # the memory for finding the places of one is free before the next
        yield from _placing(call, mask_here.numel())


def _put(call: Call) -> Steps:
    into, indices, value = call.args[:3]
    places = [index for index in indices if index is not None]
    accumulated = call.argument(3, "accumulate", False)
    if value.device.type == "cpu":
        if len(places) == 1 and places[0].dtype in MASKS and places[0].device == into.device and not accumulated:
            return  # a fill where the mask is true
        yield empty(value.shape, value.dtype)
    if not accumulated or not places:
        yield from _indexed(call)
        return
    # Indexing.cu sorts the places of the values. The memory for masks is free by then.
    wide = [index.dim() if index.dtype in MASKS else 1 for index in places]
    shapes = [[_trues(index, call.known(index))] if index.dtype in MASKS else index.shape for index in places]
    n = torch.broadcast_shapes(*shapes).numel()  # type: ignore[no-untyped-call]
    first = next(at for at, index in enumerate(indices) if index is not None)
    sizes = into.shape[first : first + sum(wide)]
    rest = math.prod(into.shape) // math.prod(sizes)
    if value.numel() < n * rest or not value.is_contiguous():
        yield empty((n, rest), value.dtype)
    for _ in range(4):
        yield empty((n,), torch.int64)
    yield of_bytes(sort_bytes(n, 8, call.card.compute_capability, bits=math.prod(sizes).bit_length()))


def _is_in(call: Call) -> Steps:
    elements, tests = call.args[:2]
    if isinstance(elements, Tensor) and isinstance(tests, Tensor) and tests.numel() < 10 * elements.numel() ** 0.145:
        yield of_bytes(elements.numel() * tests.numel())
        yield of_bytes(elements.numel())


def _unpooled(call: Call) -> Steps:
    """Copies of values and places that are not contiguous (MaxUnpooling.cu)."""
    for x in call.args[:2]:
        yield from contiguous(x)


def _averaged(call: Call) -> Steps:
    """Ones, added as the values are, count how many values meet at each place."""
    into, source, reduce = call.args[0], call.args[3], call.argument(4, "reduce")
    if reduce == "mean":
        yield empty(into.shape, into.dtype)
        ones_bytes, none_bytes = source.numel() * source.dtype.itemsize, into.numel()
        if name(call.func) == "index_reduce":  # there, one is freed before the other is allocated
            yield of_bytes(max(ones_bytes, none_bytes))
        else:
            yield of_bytes(ones_bytes)
            yield of_bytes(none_bytes)


def _trues(mask: Tensor, value: Tensor | None) -> int:
    with _disable_current_modes():
        return mask.numel() if value is None else int(value.count_nonzero())


RULES: Rules = {
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp"), _scanned),
    **dict.fromkeys(("index_put", "_index_put_impl"), _put),
    **dict.fromkeys(("scatter_reduce", "index_reduce"), _averaged),
    "repeat_interleave": _repeated,
    **dict.fromkeys(("segment_reduce", "_segment_reduce_backward"), _segmented),
    "masked_scatter": _scattered_by_mask,
    "masked_scatter_backward": _filled_up,
    "nonzero": _placed,
    "index": _indexed,
    "isin": _is_in,
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), _unpooled),
}
BEFORE: Rules = {"repeat_interleave": _summed_to_repeat, "masked_scatter_backward": _chosen_back}
