"""Rules for prefix sums, masks and places."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from vram.simulated.kernels.call import (
    HALF,
    Call,
    Rules,
    Step,
    Steps,
    clone,
    contiguous,
    empty,
    meta,
    name,
    of_bytes,
)
from vram.simulated.kernels.cub import scan_bytes, select_bytes, sort_bytes, sum_bytes

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
    yield empty((), torch.int32)
    yield of_bytes(sum_bytes(mask.numel(), call.card))
    yield -1
    yield empty((_chosen(call), mask.dim()), torch.int64)
    yield of_bytes(select_bytes(mask.numel(), call.card.compute_capability))
    yield -1
    yield -2
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


def _sought(call: Call) -> Steps:
    """A mask without gaps, and how many of it are true (Nonzero.cu)."""
    x = call.args[0]
    if x.dim():
        yield from contiguous(x)
    yield empty((), torch.int32)


def _summed(call: Call) -> Steps:
    if call.args[0].numel():
        yield of_bytes(sum_bytes(call.args[0].numel(), call.card))


def _placed(call: Call) -> Steps:
    x = call.args[0]
    if x.dim():  # without dimensions it has no places, true or not
        yield of_bytes(select_bytes(x.numel(), call.card.compute_capability))


class _Places:
    """An operation's indices as a card brings them together (IndexingUtils.h, TensorAdvancedIndexing.cpp).

    `looks`: an index without memory for each dimension, a mask being where it is true; None for a dimension without.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._alive: list[int] = []  # what is in memory, in that order, by the dimension that it is for
        self._here: list[bool] = []  # whether an index was on the card from the start
        self.looks: list[Tensor | None] = []

    def found(self, *, moved: bool) -> Steps:
        """Masks are searched; what is of the CPU is `moved`."""
        x, indices = self._call.args[:2]
        for index in indices:
            mask, here = index is not None and index.dtype in MASKS, index is not None and index.device == x.device
            self._here += [here] * (index.dim() if mask else 1)
            if mask:
                n = _trues(index, self._call.known(index))
                if here:
                    yield from self._searched(index, n)
                elif moved:
                    yield self._take((n, index.dim()), torch.int64)
                shape, strides = (n, index.dim()), (1, n) if here else (index.dim(), 1)
                self.looks += _look(shape, strides, torch.int64).unbind(1)
                continue
            if index is not None and not here and moved:
                yield self._take(index.shape, index.dtype)
            self.looks.append(None if index is None else _look(index.shape, index.stride(), index.dtype))

    def _searched(self, mask: Tensor, n: int) -> Steps:
        """Afterwards there are the places alone."""
        yield from contiguous(mask)
        yield empty((), torch.int32)  # how many there are
        yield of_bytes(sum_bytes(mask.numel(), self._call.card))
        yield -1
        yield self._take((n, mask.dim()), torch.int64)
        yield of_bytes(select_bytes(mask.numel(), self._call.card.compute_capability))
        yield -1
        for _ in range(1 if mask.is_contiguous() else 2):
            yield -2

    def widened(self) -> Steps:
        """Numbers of 32 bits become those of 64."""
        for dim, look in enumerate(self.looks):
            if look is not None and look.dtype != torch.int64:
                yield from self._replaced(dim, look.to(torch.int64))

    def spread(self) -> None:
        """They get one shape."""
        with _disable_current_modes():
            spread = iter(torch.broadcast_tensors(*self.there()))  # type: ignore[no-untyped-call]
        self.looks = [None if look is None else next(spread) for look in self.looks]

    def aligned(self) -> Steps:
        """Several get the same strides."""
        if len({look.reshape(*look.shape, 1).stride() for look in self.there()}) > 1:
            for dim, look in enumerate(self.looks):
                if look is not None and not look.is_contiguous():
                    yield from self._replaced(dim, meta(look.shape, torch.int64))

    def summed(self) -> Steps:
        """One number for each place, and nothing else afterwards (`computeLinearIndex` in Indexing.cu)."""
        n = self.there()[0].shape
        at_start = [here for look, here in zip(self.looks, self._here, strict=True) if look is not None]
        for number, here in enumerate(at_start):
            yield empty(n, torch.int64)
            if here:
                yield empty(n, torch.int64)
                yield -2
            if number:
                yield -1
        for _ in self._alive:
            yield -2

    def there(self) -> list[Tensor]:
        """The indices that there are."""
        return [look for look in self.looks if look is not None]

    def _take(self, shape: Any, dtype: torch.dtype) -> Step:
        self._alive.append(len(self.looks))
        return empty(shape, dtype)

    def _replaced(self, dim: int, look: Tensor) -> Steps:
        self.looks[dim] = look
        if not (self._here[dim] or dim in self._alive):
            return  # of the CPU
        yield empty(look.shape, look.dtype)
        self._alive.append(dim)
        if (before := self._alive.index(dim)) < len(self._alive) - 1:
            yield before - len(self._alive)
            del self._alive[before]


def _look(shape: Any, strides: Any, dtype: torch.dtype) -> Tensor:
    with _disable_current_modes():
        return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def _indexed(call: Call) -> Steps:
    places = _Places(call)
    yield from places.found(moved=True)
    places.spread()
    yield from places.widened()
    yield from places.aligned()


def _put(call: Call) -> Steps:
    into, indices, value = call.args[:3]
    there = [index for index in indices if index is not None]
    accumulated = call.argument(3, "accumulate", False)
    if value.device.type == "cpu":
        if len(there) == 1 and there[0].dtype in MASKS and there[0].device == into.device and not accumulated:
            if there[0].dtype == torch.uint8:
                raise RuntimeError("masked_fill only supports boolean masks, but got dtype Byte")  # in torch's words
            return  # a fill where the mask is true
        yield empty(value.shape, value.dtype)
    if there and accumulated:
        yield from _put_in_order(call)
    elif there:
        yield from _indexed(call)


def _put_in_order(call: Call) -> Steps:
    """Values are put in the order of their places, which are sorted (`index_put_with_sort_kernel` in Indexing.cu)."""
    into, value, places = call.args[0], call.args[2], _Places(call)
    yield from contiguous(into)
    yield from places.found(moved=False)
    yield from places.widened()
    places.spread()
    yield from places.summed()
    dims = [dim for dim, look in enumerate(places.looks) if look is not None]
    others = [dim for dim in range(into.dim()) if dim not in dims]
    apart = dims[-1] - dims[0] >= len(dims)  # then their dimensions come first
    n, rows = places.there()[0].numel(), math.prod(into.shape[dim] for dim in others)
    if value.numel() < n * rows or not value.is_contiguous():
        yield empty((max(value.numel(), n * rows),), value.dtype)
    if not n or not rows:
        return
    with _disable_current_modes():
        moved = torch.empty(into.shape, device="meta").permute(*dims, *others) if apart else None
        in_order = torch.add(places.there()[0], 1).is_contiguous()
    if moved is not None and not moved.is_contiguous():
        yield empty(into.shape, into.dtype)
    if not in_order:
        yield empty((n,), torch.int64)
        yield -1
    for _ in range(3):
        yield empty((n,), torch.int64)
    after = rows if apart else math.prod(into.shape[dim] for dim in others if dim > dims[0])
    bits = max(1, ((into.numel() - 1) // after).bit_length())
    yield of_bytes(sort_bytes(n, 8, call.card.compute_capability, bits=bits))


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
    "isin": _is_in,
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), _unpooled),
}
AROUND: Rules = {"nonzero": _sought, "index": _indexed}
BEFORE: Rules = {"nonzero": _summed, "repeat_interleave": _summed_to_repeat, "masked_scatter_backward": _chosen_back}
