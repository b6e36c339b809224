"""Rules for rows, groups, reductions and losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from vram.simulated.kernels.call import HALF, Call, Rules, Steps, contiguous, empty, meta, name, of_bytes
from vram.simulated.kernels.reduce_buffers import buffers
from vram.simulated.operations import tensors

_CHUNK = 65536  # numbers that a block takes of a list of tensors
_NORMS_OF_LISTS = (0, 1, 2, math.inf)


# Reductions of rows (SoftMax.cu, layer_norm_kernel.cu)


def _by_rows(call: Call) -> Steps:
    yield from contiguous(call.args[0])


def _back_by_softmax(call: Call) -> Steps:
    """SoftMax.cu: the gradient times the result, and copies of both by rows."""
    gradient, output = call.args[:2]
    yield torch.ops.aten.mul.Tensor, (gradient, output), {}
    with _disable_current_modes():
        as_strided = (torch.empty_strided(each.shape, each.stride(), device="meta") for each in (gradient, output))
        in_rows = torch.mul(*as_strided).is_contiguous()
    if not in_rows:
        yield empty(output.shape, output.dtype)
    yield from contiguous(output)


def _back_by_log_softmax(call: Call) -> Steps:
    yield from contiguous(call.args[0])
    yield from contiguous(call.args[1])


def _normalised(call: Call) -> Steps:
    """layer_norm_kernel.cu copies an input by columns before it has memory for the results, a gradient after that."""
    yield from contiguous(call.args[1])


def _by_groups(call: Call) -> Steps:
    """group_norm_kernel.cu: one factor and one term a channel, of the statistics and the weights."""
    x, weight, bias, samples, channels, pixels, groups = call.args[:7]
    wide = torch.float32 if x.dtype in HALF else x.dtype
    yield from contiguous(x)
    for shape, needed in (
        ((samples, groups), x.dtype != wide and call.version >= (2, 13)),
        ((samples, channels), pixels > 1 and not (weight is None and bias is None)),
    ):
        if needed:
            yield empty(shape, wide)
            yield empty(shape, wide)


def _back_by_groups(call: Call) -> Steps:
    """group_norm_kernel.cu: two sums a channel; for the input's gradient, up to one factor a channel, two a group."""
    gradient, x, _, _, weight, samples, channels, pixels, groups, wanted = call.args[:10]
    wide = torch.float32 if x.dtype in HALF else x.dtype
    of_channels, of_groups = empty((samples, channels), wide), empty((samples, groups), wide)
    before = sum(not each.is_contiguous() for each in (gradient, x)) + 2  # copies, and the sums of channels
    yield from contiguous(gradient)
    yield from contiguous(x)
    yield of_channels
    yield of_channels
    if wanted[0]:
        yield of_groups
        yield of_groups
        if pixels > 1 and weight is not None:
            yield of_channels
        yield before + 1  # they go in this order, which the allocator sees
        yield before


# Reductions (ReduceOps.cpp, Reduce.cuh)


def _summed(call: Call) -> Steps:
    x, dtype = call.args[0], call.result.dtype
    if dtype != x.dtype and not (x.dtype in HALF and dtype == torch.float32):
        yield empty(x.shape, dtype)  # truths and small numbers are widened first
    else:
        dtype = x.dtype
    yield from _shared(call, _dims(call), max(4, dtype.itemsize), x)


def _normed(call: Call) -> Steps:
    yield from _shared(call, _dims(call, 2), max(4, call.result.dtype.itemsize), call.args[0])


def _deviating(call: Call) -> Steps:
    if not call.args[0].is_complex():
        yield from _deviations(call, call.args[0])


def _deviations(call: Call, x: Tensor) -> Steps:
    dims = () if isinstance(call.argument(1, "dim"), bool) else _dims(call)
    yield from _shared(call, dims, 32 if x.dtype == torch.float64 else 16, x)


def _deviating_in_parts(call: Call) -> Steps:
    """Results of the real and the imaginary parts of complex numbers, which are added; so are means (ReduceOps.cpp)."""
    x = call.args[0]
    if x.is_complex():
        with _disable_current_modes():
            strides = [2 * stride for stride in x.stride()]
            part = torch.empty_strided(x.shape, strides, dtype=x.dtype.to_real(), device="meta")
        for _ in range(2):
            for each in tensors(call.result):
                yield empty(each.shape, each.dtype.to_real())
            shared = list(_deviations(call, part))
            yield from (*shared, *[-1] * len(shared))


def _extreme(call: Call) -> Steps:
    x = call.args[0]
    of_two = isinstance(call.argument(1, "other"), Tensor)
    if not of_two:
        placed = isinstance(call.result, tuple) or call.result.dtype != x.dtype
        yield from _shared(call, _dims(call), 16 if placed else x.dtype.itemsize, x)


def _true(call: Call) -> Steps:
    x = call.args[0]
    if x.numel() == 1:  # no reduction: it is converted, then copied (allany_impl in ReduceOps.cpp)
        if x.dtype != torch.bool:
            yield empty((), torch.bool)
        return
    yield from _shared(call, _dims(call), x.dtype.itemsize if call.version < (2, 12) else 1, x)


def _counted(call: Call) -> Steps:
    x = call.args[0]
    if x.dtype != torch.bool:
        yield empty(x.shape, torch.bool)
    yield empty(x.shape, torch.int64)
    yield from _shared(call, _dims(call), 8, x)


def _renormed(call: Call) -> Steps:
    """The norms, and in half precision and of complex numbers the factors apart from them (Normalization.cpp)."""
    x, dim = call.args[0], call.args[2]
    norms = empty((x.shape[dim],), torch.float32 if x.dtype in HALF else x.dtype.to_real())
    yield norms
    dims = tuple(other for other in range(x.dim()) if other != dim % x.dim())
    shared = buffers(x, dims, max(4, norms[2]["dtype"].itemsize), call.card) or ()
    yield from map(of_bytes, shared)
    yield from [-1] * len(shared)
    if x.dtype in HALF or x.is_complex():
        yield empty((x.shape[dim],), x.dtype)


def _normed_as_list(call: Call) -> Steps:
    """A number for each chunk of each tensor, as many as the longest has (ForeachReduceOp.cu)."""
    operands, order = call.args[0], call.argument(1, "ord", 2)
    if len({each.dtype for each in operands}) == 1 and operands[0].is_floating_point() and order in _NORMS_OF_LISTS:
        dtype = call.argument(2, "dtype") or operands[0].dtype
        chunks = max(-(-each.numel() // _CHUNK) for each in operands)
        yield empty((len(operands) * chunks,), torch.float32 if dtype in HALF else dtype)


def _log_summed(call: Call) -> Steps:
    x, result = call.args[0], call.result
    if x.dtype != result.dtype:
        yield empty(x.shape, result.dtype)
    yield empty(x.shape, result.dtype)  # less the greatest
    yield empty(result.shape, result.dtype)
    yield from _shared(call, _dims(call), max(4, result.dtype.itemsize), x)


def _equal(call: Call) -> Steps:
    first, second = call.args[:2]
    if first.shape == second.shape and first.numel():
        yield empty(first.shape, torch.bool)
        yield empty((), torch.bool)


def _dims(call: Call, position: int = 1) -> tuple[int, ...]:
    dims = call.argument(position, "dim")
    return (dims,) if type(dims) is int else tuple(dims or ())


def _shared(call: Call, dims: tuple[int, ...], value_bytes: int, x: Tensor) -> Steps:
    for n_bytes in buffers(x, dims, value_bytes, call.card) or ():
        yield of_bytes(n_bytes)


def _back_by_cells(call: Call) -> Steps:
    """The gradients of biases are sums of those of gates (RNN.cu)."""
    of_gates = call.result[0]
    if call.argument(2 if "gru" in name(call.func) else 5, "has_bias"):
        yield from _shared(call, (0,), max(4, of_gates.itemsize), of_gates)


# Losses (Loss.cpp): those of all elements are there before their mean


def _loss(call: Call) -> Steps:
    if call.argument(2, "reduction", 1):
        yield from _mean_of_losses(call)


def _loss_in_place(call: Call) -> Steps:
    """The mean has memory of its own, and is copied to where the losses are."""
    if call.argument(3, "reduction", 1):
        yield empty((), call.result.dtype)
        yield from _mean_of_losses(call, 0)


def _mean_of_losses(call: Call, times: int = 1) -> Steps:
    losses = meta(_loss_shape(call.args), call.result.dtype)
    for _ in range(times):
        yield empty(losses.shape, losses.dtype)
    yield from _shared(call, (), max(4, losses.dtype.itemsize), losses)


def _loss_bytes(args: Any, result: Tensor) -> int:
    """Bytes of the losses of all elements: the mean is written there, and keeps that memory."""
    return int(_loss_shape(args).numel()) * result.dtype.itemsize


def _loss_shape(args: Any) -> torch.Size:
    return torch.broadcast_shapes(args[0].shape, args[1].shape)  # type: ignore[no-untyped-call,no-any-return]


def _bounded(call: Call) -> Steps:
    """The least and the greatest number, which say how many there are to count (SummaryOps.cu). Weights are cast to
    float64 unless they are of 32 bits."""
    x, weights = call.args[0], call.argument(1, "weights")
    if weights is not None and weights.dtype not in (torch.float32, torch.float64):
        yield empty(weights.shape, torch.float64)
    if x.numel():
        yield empty((), x.dtype)
        yield empty((), x.dtype)


_NORMS_BACK = ("native_layer_norm_backward", "_fused_rms_norm_backward")
RULES: Rules = {
    **dict.fromkeys(("_softmax", "_log_softmax", "native_layer_norm", "_fused_rms_norm"), _by_rows),
    **dict.fromkeys(_NORMS_BACK, _by_rows),
    "_softmax_backward_data": _back_by_softmax,
    "_log_softmax_backward_data": _back_by_log_softmax,
    **dict.fromkeys(("sum", "nansum", "mean", "prod"), _summed),
    **dict.fromkeys(("std", "var", "std_mean", "var_mean"), _deviating),
    **dict.fromkeys(("amax", "amin", "max", "min", "argmax", "argmin"), _extreme),
    **dict.fromkeys(("all", "any"), _true),
    **dict.fromkeys(("linalg_vector_norm", "norm"), _normed),
    **dict.fromkeys(("mse_loss", "smooth_l1_loss", "huber_loss"), _loss),
    "binary_cross_entropy": _loss_in_place,
    "native_group_norm": _by_groups,
    "native_group_norm_backward": _back_by_groups,
    "count_nonzero": _counted,
    "logsumexp": _log_summed,
    "renorm": _renormed,
    "equal": _equal,
    **dict.fromkeys(("_thnn_fused_gru_cell_backward", "_thnn_fused_lstm_cell_backward_impl"), _back_by_cells),
}
KEPT: dict[str, Callable[[Any, Tensor], int]] = dict.fromkeys(
    ("mse_loss", "smooth_l1_loss", "binary_cross_entropy"), _loss_bytes
)
AROUND: Rules = {
    **dict.fromkeys(_NORMS_BACK, _normalised),
    **dict.fromkeys(("std", "var", "std_mean", "var_mean"), _deviating_in_parts),
    "bincount": _bounded,
    "_foreach_norm": _normed_as_list,
}
