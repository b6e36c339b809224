"""Rules for batch normalisation (Normalization.cpp, Normalization.cu, Normalization.cuh)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vram.simulated.kernels.call import Call, Rules, Steps, empty

_MOST_BY_CUDNN, _MOST_TRAINED_BY_CUDNN = 65535, 880801  # samples
_MOST_THREADS, _TILE, _VALUES_OF_THREAD, _MOST_ROWS, _LEAST_ROWS = 512, 32, 16, 128, 8


def without_statistics(args: Any) -> bool:
    """Whether cuDNN normalises by running means, and so takes no memory for those of this batch."""
    x, weight, bias, mean, variance, training = args[:6]
    return not training and bias is not None and mean is not None is not variance and by_cudnn(x, weight, training)


def backward_results(args: Any, result: Any) -> Any:
    """The gradients as a card makes them: that of the input has its channels first where running means were used."""
    if args[7] or result[0].is_contiguous():
        return result
    return torch.empty_like(result[0], memory_format=torch.contiguous_format), *result[1:]


def by_cudnn(x: Tensor, weight: Tensor | None, training: bool) -> bool:
    """Whether cuDNN normalises: `_select_batch_norm_backend`."""
    return (
        weight is not None
        and torch.backends.cudnn.enabled
        and x.dtype != torch.bfloat16 != weight.dtype
        and (x.dtype != torch.float16 or weight.dtype == torch.float32)
        and x.dim() >= 3
        and x.shape[0] <= (_MOST_TRAINED_BY_CUDNN if training else _MOST_BY_CUDNN)
    )


def _channels_last(x: Tensor) -> bool:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.dim())
    if last is not None and x.is_contiguous(memory_format=last):
        return True
    return x.is_contiguous() and x.stride(1) == 1


def _parts(x: Tensor, values: int) -> Steps:
    """So many values of each block that shares a channel, and their semaphores: `flexible_launch_configs`."""
    channels = x.shape[1]
    rows = x.numel() // channels
    width = min(_last_power_of_two(channels), _TILE)
    height = min(_last_power_of_two(-(-rows // _VALUES_OF_THREAD)), _MOST_THREADS // width)
    if width * height != _MOST_THREADS:
        width = min(_last_power_of_two(channels), _MOST_THREADS // height)
    blocks = min(-(-rows // (height * _VALUES_OF_THREAD)), _MOST_ROWS)
    if blocks >= _LEAST_ROWS:
        yield empty((values * channels * blocks,), torch.float32)
        yield empty((-(-channels // width),), torch.int32)


def _last_power_of_two(n: int) -> int:
    return 1 << (max(n, 1).bit_length() - 1)


def _by_elements(x: Tensor) -> bool:
    """Whether TensorIterator normalises, which reads a factor and a term in any case (`batch_norm_choose_impl`)."""
    return not (x.is_contiguous() or (x.dim() == 4 and _channels_last(x)))


def _normalised(call: Call) -> Steps:
    x, weight, bias = call.args[:3]
    training = call.args[5]
    if not x.numel() or by_cudnn(x, weight, training):
        return
    if training and _channels_last(x):
        parts = list(_parts(x, 4))
        yield from parts
        yield from [-1] * len(parts)
    if _by_elements(x):
        for each in (weight, bias):
            if each is None:
                yield empty((), torch.float64 if x.dtype == torch.float64 else torch.float32)


def _back_by_elements(call: Call) -> Steps:
    """Number that its backward pass reads for a factor that is not given."""
    x, weight, training = call.args[1], call.args[2], call.args[7]
    if training and weight is None and x.numel() and _by_elements(x):
        yield empty((), torch.float64 if x.dtype == torch.float64 else torch.float32)


def _reduces(call: Call) -> bool:
    """Whether sums over each channel are made apart from the gradient of the input, with channels last."""
    x, weight, training, wanted = call.args[1], call.args[2], call.args[7], call.args[9]
    in_cudnn = training and by_cudnn(x, weight, training)
    return bool(x.numel() and (training or any(wanted[1:])) and _channels_last(x) and not in_cudnn)


def _summed(call: Call) -> Steps:
    """Two sums a channel, and the deviations where nothing but a running variance is known."""
    if _reduces(call):
        x, weight, deviations, training = call.args[1], call.args[2], call.args[6], call.args[7]
        channels, by_running = x.shape[1], not training and by_cudnn(x, weight, training)
        for _ in range(3 if by_running or deviations is None or not deviations.numel() else 2):
            yield empty((channels,), torch.float32)


def _shared(call: Call) -> Steps:
    """While those are made: the gradients of weight and bias, and what the blocks pass on."""
    if _reduces(call):
        x, weight = call.args[1:3]
        for needed in call.args[9][1:]:
            if needed and weight is not None:
                yield empty((x.shape[1],), weight.dtype)
        yield from _parts(x, 2)


_BACKWARD = ("native_batch_norm_backward", "batch_norm_backward")
RULES: Rules = {"native_batch_norm": _normalised, **dict.fromkeys(_BACKWARD, _back_by_elements)}
BEFORE: Rules = dict.fromkeys(_BACKWARD, _shared)
AROUND: Rules = dict.fromkeys(_BACKWARD, _summed)
