"""Rules for order and chance (Sort.cpp, Sort.cu, TensorTopK.cu, Distributions.cpp, Randperm.cu)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vram.simulated.kernels.call import HALF, Call, Rules, Steps, clone, contiguous, empty, meta, name, of_bytes
from vram.simulated.kernels.cub import scan_by_key_bytes, segmented_sort_bytes, sort_bytes
from vram.simulated.kernels.indexing import scan_bytes_of

_aten = torch.ops.aten

MOST_SORTED_WITHIN_BLOCKS = 4096
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
    if length <= MOST_SORTED_WITHIN_BLOCKS:
        yield empty((length,), torch.int64)
        return
    capability, key_bytes = call.card.compute_capability, x.dtype.itemsize
    if dim % x.dim() != x.dim() - 1 or not x.is_contiguous():
        for dtype in (x.dtype, x.dtype, torch.int64):
            yield empty(x.shape, dtype)
    yield empty(x.shape, torch.int64)
    if n // length >= _LEAST_SORTED_BY_SEGMENTS:
        yield of_bytes(segmented_sort_bytes(n, key_bytes))
        return
    if n > length:  # all rows at once: by value, then by row
        yield empty(x.shape, torch.int64)
        yield empty(x.shape, x.dtype)
    yield of_bytes(sort_bytes(n, key_bytes, capability))


def _searched(call: Call) -> Steps:
    """Contiguous copies of what is searched, and of what is searched for, in one type (BucketizationUtils.h)."""
    sequence, values = call.args[:2]
    if name(call.func) == "bucketize":
        sequence, values = values, sequence
    operands = [values, sequence] if isinstance(values, Tensor) else [sequence]
    for each in operands:
        yield from contiguous(each)
    if isinstance(values, Tensor) and values.dtype != sequence.dtype:
        common = torch.result_type(sequence, values)
        for each in operands:
            if each.dtype != common:
                yield empty(each.shape, common)


def _number_searched(call: Call) -> Steps:
    """A number becomes a tensor of float64 or int64, and is cast then."""
    values = call.args[0 if name(call.func) == "bucketize" else 1]
    if not isinstance(values, Tensor):
        sequence = call.args[1 if name(call.func) == "bucketize" else 0]
        dtype = torch.float64 if isinstance(values, float) else torch.int64
        yield empty((), dtype)
        if sequence.dtype != dtype:
            yield empty((), sequence.dtype)


def _middle(call: Call) -> Steps:
    x = call.args[0]
    if len(call.args) == 1 and not call.kwargs:  # of all: they are sorted as one row
        yield from contiguous(x)
        flat = meta((x.numel(),), x.dtype)
        yield empty(flat.shape, flat.dtype)
        yield empty(flat.shape, torch.int64)
        yield from _sorting(call, flat, 0)


def _topmost(call: Call) -> Steps:
    dim = call.argument(2, "dim", -1)
    yield from _choosing(call, call.args[0], dim)
    values, places = call.result
    if call.argument(4, "sorted", True) and values.dim() and values.shape[dim] > MOST_SORTED_WITHIN_BLOCKS:
        yield None
        yield empty(values.shape, values.dtype)
        yield empty(places.shape, places.dtype)
        yield from _sorting(call, values, dim)


def _choosing(call: Call, x: Tensor, dim: int) -> Steps:
    if not x.dim() or not x.numel():
        return
    length = x.shape[dim]
    rows = x.numel() // length
    if not x.is_contiguous():
        yield clone(x)
    enough = next((long for most, long in _LONG_ROWS if rows <= most), _LONG_ROW)
    if length >= enough:
        at_once = call.card.multiprocessors * _BLOCKS * _THREADS
        items = max(4, min(-(-x.numel() // at_once), 64))
        blocks = rows * -(-length // (items * _THREADS))
        n_bytes = (rows * x.dtype.itemsize, rows * 8, rows * 2 * max(4, x.dtype.itemsize))
        for each in (*n_bytes, blocks * 512, rows * 1024, blocks * 4, blocks * 4, scan_by_key_bytes(blocks)):
            yield of_bytes(each)


def _most_frequent(call: Call) -> Steps:
    x = call.args[0]
    if x.dim():
        yield from contiguous(x.transpose(call.argument(1, "dim", -1), -1))


def _shuffled(call: Call) -> Steps:
    """A sort by random keys with so many bits that two alike are unlikely (Randperm.cu)."""
    n, dtype = call.result.numel(), call.result.dtype
    if n:
        bits = min(64, math.ceil(math.log2(n - (6 * n * n + 1) / (12 * math.log(0.9)))))
        keys = torch.int64 if bits > 32 else torch.int32
        for each in (dtype, keys, keys):
            yield empty((n,), each)
        yield of_bytes(sort_bytes(n, keys.itemsize, call.card.compute_capability, bits, dtype.itemsize))


def _drawn(call: Call) -> Steps:
    x, n = call.args[:2]
    if call.argument(2, "replacement", False) and n > 1:
        for _ in range(3):
            yield empty(x.shape, x.dtype)
        if x.numel() == x.shape[-1]:
            yield of_bytes(scan_bytes_of(x.numel(), x.dtype))
        return
    for _ in range(2):  # whether the probabilities are fine
        yield empty((), torch.bool)
        if call.version >= (2, 12):  # the least and the greatest
            yield empty((), x.dtype)
    yield empty(x.shape, x.dtype)  # each by a number that is drawn for it
    if n > 1:
        yield empty((*x.shape[:-1], n), x.dtype)
        yield from _choosing(call, x, -1)


def _normal(call: Call) -> Steps:
    """The least of several deviations must not be negative (`normal_out_impl` in DistributionTemplates.h)."""
    if call.func is _aten.normal.Tensor_float:
        yield empty(call.result.shape, call.result.dtype)
    deviations = call.argument(1, "std")
    if isinstance(deviations, Tensor) and deviations.numel():
        yield empty((), deviations.dtype)
        yield empty((), torch.bool)


def _drawn_by(call: Call) -> Steps:
    """Probabilities in half precision are widened first."""
    position = {_aten.bernoulli.default: 0, _aten.bernoulli_.Tensor: 1}.get(call.func)
    if position is not None and call.args[position].dtype in HALF:
        yield empty(call.args[position].shape, torch.float32)


RULES: Rules = {
    "sort": _sorted,
    **dict.fromkeys(("searchsorted", "bucketize"), _searched),
    "topk": _topmost,
    "mode": _most_frequent,
    "multinomial": _drawn,
    "randperm": _shuffled,
    "normal": _normal,
    "bernoulli": _drawn_by,
}
AROUND: Rules = dict.fromkeys(("searchsorted", "bucketize"), _number_searched)
BEFORE: Rules = dict.fromkeys(("median", "nanmedian"), _middle)
