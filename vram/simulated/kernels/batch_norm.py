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
    return not training and bias is not None and mean is not None is not variance and _by_cudnn(x, weight, training)


def backward_results(args: Any, result: Any) -> Any:
    """The gradients as a card makes them: that of the input has its channels first where running means were used."""
    if args[7] or result[0].is_contiguous():
        return result
    return torch.empty_like(result[0], memory_format=torch.contiguous_format), *result[1:]


def _by_cudnn(x: Tensor, weight: Tensor | None, training: bool) -> bool:
    """`_select_batch_norm_backend`."""
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


def _normalised(call: Call) -> Steps:
    x, weight, *_ = call.args
    training = call.args[5]
    if training and _channels_last(x) and x.numel() and not _by_cudnn(x, weight, training):
        yield from _parts(x, 4)


def _reduces(call: Call) -> bool:
    """Whether sums over each channel are made apart from the gradient of the input, with channels last."""
    x, weight, training, wanted = call.args[1], call.args[2], call.args[7], call.args[9]
    by_cudnn = training and _by_cudnn(x, weight, training)
    return bool(x.numel() and (training or any(wanted[1:])) and _channels_last(x) and not by_cudnn)


def _summed(call: Call) -> Steps:
    """Two sums a channel, and the deviations where nothing but a running variance is known."""
    if _reduces(call):
        channels, deviations = call.args[1].shape[1], call.args[6]
        for _ in range(3 if deviations is None or not deviations.numel() else 2):
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
RULES: Rules = {"native_batch_norm": _normalised}
BEFORE: Rules = dict.fromkeys(_BACKWARD, _shared)
AROUND: Rules = dict.fromkeys(_BACKWARD, _summed)
