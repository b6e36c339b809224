"""Rules for operations that copy: to another layout (convolutions, windows, rolls), parts, between CPU and card."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vram.simulated.kernels.call import Call, Rules, Steps, clone, contiguous, empty, meta, of_bytes
from vram.simulated.kernels.layouts import of_cudnn
from vram.simulated.kernels.reduce_buffers import buffers

_WIDEST = {bool: torch.bool, int: torch.int64, float: torch.float64, complex: torch.complex128}


def _convolved(call: Call) -> Steps:
    """cuDNN reads both in one memory format."""
    yield from _as_cudnn_reads(call.args[:2], call.args[:2])


def _convolved_backward_of_input(call: Call) -> Steps:
    """The gradient of the input comes first, and the weight's copy goes before there is one of the weight
    (native/cudnn/ConvShared.cpp). The gradient is made again as a result, which leaves the peak as it is."""
    x, weight = call.args[1:3]
    copied = list(_as_cudnn_reads((weight,), (x, weight))) if call.args[10][0] else []
    if copied:
        yield from copied
        yield empty(x.shape, x.dtype)


def _convolved_backward(call: Call) -> Steps:
    operands = call.args[:2] if call.args[10][1] else call.args[:1]
    yield from _as_cudnn_reads(operands, call.args[1:3])


def _as_cudnn_reads(operands: Sequence[Tensor], deciding: Sequence[Tensor]) -> Steps:
    """Copies of `operands` that are not in the memory format which those that are `deciding` suggest."""
    chosen = of_cudnn(deciding)
    for each in operands:
        if not each.is_contiguous(memory_format=chosen):
            yield clone(each, chosen)


def _of_windows(call: Call) -> Steps:
    """The result starts at the size of the input, and is made anew where it is larger (Im2Col.cu, Col2Im.cu)."""
    x = call.args[0]
    yield from contiguous(x)
    if call.result.numel() > x.numel():
        yield empty(x.shape, x.dtype)


def _rolled(call: Call) -> Steps:
    """One dimension after the other; without dimensions, as one row (TensorTransformations.cpp)."""
    x, dims = call.args[0], call.argument(2, "dims", ())
    if len(dims) < 2:
        yield from contiguous(x)
    for _ in dims[1:]:
        yield empty(x.shape, x.dtype)


def _distances(call: Call) -> Steps:
    """A matrix product of the points, each with its norm and a one appended (`_euclidean_dist` in Distance.cpp)."""
    first, second = call.args[:2]
    for each in (first, second):
        yield empty(each.shape, each.dtype)  # squares
        yield empty((*each.shape[:-1], 1), each.dtype)
        yield -2
        yield empty((*each.shape[:-1], 1), each.dtype)
    yield empty(first.shape, first.dtype)  # times -2
    for each, gone in ((first, (0, 0, 2)), (second, (0, 0))):
        yield empty((*each.shape[:-1], each.shape[-1] + 2), each.dtype)
        yield from gone


def _expanded(first: Tensor, second: Tensor) -> Steps:
    """Points of one of both that are not contiguous, or of fewer batches than the other's."""
    batches = torch.broadcast_shapes(first.shape[:-2], second.shape[:-2])  # type: ignore[no-untyped-call]
    for each in (first, second):
        yield from contiguous(each.expand((*batches, *each.shape[-2:])))


def _other_distances(call: Call) -> Steps:
    yield from _expanded(*call.args[:2])


def _other_distances_back_around(call: Call) -> Steps:
    yield from _expanded(*call.args[1:3])


def _other_distances_back(call: Call) -> Steps:
    """Parts that each of the second points adds to the gradient of each of the first (DistanceKernel.cu)."""
    gradient, first, second, p = call.args[:4]
    if gradient.numel() and first.shape[-1] and p != 0:
        batches = math.prod(gradient.shape[:-2])
        yield from _summed_parts(call, meta((batches, second.shape[-2], *first.shape[-2:]), first.dtype), 1)


def _windows_back(call: Call) -> Steps:
    """Where windows overlap, the places along their dimension (UnfoldBackward.h)."""
    _, sizes, dim, size, step = call.args
    if step < size and sizes:
        yield empty((sizes[dim],), torch.int64)


def _distances_back(call: Call) -> Steps:
    """Parts that each other point adds to the gradient of each (DistanceKernel.cu)."""
    n, size = call.args[1].shape
    if n > 1 and call.args[2] != 0:  # the number of components that differ has no gradient
        yield from _summed_parts(call, meta((n - 1, n, size), call.result.dtype), 0)


def _summed_parts(call: Call, parts: Tensor, dim: int) -> Steps:
    yield empty(parts.shape, parts.dtype)
    for n_bytes in buffers(parts, (dim,), max(4, parts.itemsize), call.card) or ():
        yield of_bytes(n_bytes)


def _by_complex(call: Call) -> Steps:
    """A complex result, where numbers are complex: its real part is copied (UnaryOps.cpp)."""
    x = call.args[0]
    if x.is_complex():
        yield empty(x.shape, x.dtype)


def _powered(call: Call) -> Steps:
    """A number's power is that of a tensor of one element, but for 1 (Pow.cpp)."""
    base = call.args[0]
    if not isinstance(base, Tensor) and base != 1:
        yield empty((), _WIDEST[type(base)])


def _chosen(call: Call) -> Steps:
    """Copies of operands of another type than the result's, and of single ones of the CPU (TensorCompare.cpp)."""
    mask, *operands = call.args[:3]
    if mask.device != call.result.device:
        yield empty(mask.shape, mask.dtype)
    for x in operands:
        if x.device != call.result.device or x.dtype != call.result.dtype:
            yield empty(x.shape, call.result.dtype)


# Between the CPU and the card (Copy.cu)


def _moved(call: Call) -> Steps:
    yield from _copying(call, call.result, call.args[0], bool(call.kwargs.get("non_blocking")))


def _copied(call: Call) -> Steps:
    into, source = call.args[:2]
    yield from _copying(call, into, source.expand(into.shape), bool(call.argument(2, "non_blocking", False)))


def _copying(call: Call, into: Tensor, source: Tensor, on_card: bool) -> Steps:
    """`on_card`: it casts on the card, as a copy that does not block does, else on the CPU."""
    same = into.dtype == source.dtype
    if into.device == source.device or not into.numel() or (same and _alike(into, source)):
        return
    if into.device.type == "cuda":
        if not into.is_contiguous() or (on_card and not same):
            yield empty(into.shape, source.dtype if on_card else into.dtype)
    elif on_card and not same:
        yield empty(source.shape, into.dtype)
    elif not source.is_contiguous():
        yield clone(source)


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether both are without gaps, in the same order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(first.stride(), first.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return first.stride() == second.stride()


RULES: Rules = {
    **dict.fromkeys(("im2col", "col2im"), _of_windows),
    "convolution": _convolved,
    "roll": _rolled,
    **dict.fromkeys(("abs", "angle"), _by_complex),
    "pow": _powered,
    "where": _chosen,
    "_cdist_backward": _other_distances_back,
    "_pdist_backward": _distances_back,
    "unfold_backward": _windows_back,
    "_to_copy": _moved,
    "copy": _copied,
}
KEPT: dict[str, Callable[[Any, Tensor], int]] = dict.fromkeys(
    ("im2col", "col2im"), lambda args, result: args[0].numel() * result.dtype.itemsize
)
BEFORE: Rules = {"convolution_backward": _convolved_backward_of_input}
AROUND: Rules = {
    "convolution_backward": _convolved_backward,
    "_euclidean_dist": _distances,
    "_cdist_forward": _other_distances,
    "_cdist_backward": _other_distances_back_around,
}
