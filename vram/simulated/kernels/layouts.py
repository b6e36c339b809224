"""Layouts in memory: results that a card lays out otherwise than fake tensors are, and kernels that read and write
contiguous memory alone, and so copy what has its channels last."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format  # by strides, also where a size is 1, as torch's own
from torch.utils._python_dispatch import _disable_current_modes

from vram.simulated.kernels.batch_norm import backward_results
from vram.simulated.kernels.call import HALF, Call, Rules, Steps, contiguous, empty
from vram.simulated.kernels.types import NAMES
from vram.simulated.kernels.types import RULES as OF_SOME_TYPES
from vram.simulated.operations import tensors

_aten = torch.ops.aten
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def of_cudnn(deciding: Sequence[Tensor]) -> torch.memory_format:
    """The memory format of a convolution of these: `cudnn_conv_suggest_memory_format` of native/ConvUtils.h."""
    last = _LAST.get(deciding[0].dim())
    formats = {suggest_memory_format(each) for each in deciding if each.dtype != torch.float64}
    return last if last is not None and last in formats else torch.contiguous_format


# Results


def _convolved(args: Any, result: Tensor) -> Tensor:
    return _laid_out(result, of_cudnn(args[:2]))


def _convolved_back(args: Any, result: Any) -> Any:
    wanted = of_cudnn(args[1:3])
    return *(None if each is None else _laid_out(each, wanted) for each in result[:2]), *result[2:]


def _interpolated(args: Any, result: Tensor) -> Tensor:
    """As the input suggests, however few its channels are (UpSampleBilinear2d.cpp, UpSampleTrilinear3d.cpp); for less
    than 16, fake tensors have the channels first."""
    return _laid_out(result, suggest_memory_format(args[0]))


def _of_two(args: Any, result: Tensor) -> Tensor:
    """As TensorIterator.cpp orders dimensions, by the operands' strides. Fake tensors cast an operand first where the
    kernel casts each number: of half precision, or of two types; an expanded one is a dense one then."""
    first, second = args[:2]
    operands = [each for each in (first, second) if isinstance(each, Tensor) and each.dim()]
    cast = result.dtype in HALF or len({each.dtype for each in operands}) > 1
    if not cast or not operands or not result.is_floating_point():
        return result
    if all(each.shape == result.shape and each.is_contiguous() for each in operands):
        return result
    return _strided(result, _iterated(tuple((tuple(each.shape), each.stride()) for each in operands)))


def _lost(args: Any, result: Tensor) -> Tensor:
    """Losses of the input's type, whatever the target's is (Loss.cpp)."""
    return result if result.dtype == args[0].dtype else torch.empty_like(result, dtype=args[0].dtype)


def _lost_back(args: Any, _: Tensor) -> Tensor:
    """So is the gradient, without gaps."""
    return torch.empty_like(args[1], memory_format=torch.contiguous_format)


def _huber_back(args: Any, result: Tensor) -> Tensor:
    """So is Huber's."""
    _check_alike(args[1], args[2], args[0])
    return _lost_back(args, result)


def _entropy(args: Any, result: Tensor) -> Tensor:
    _check_alike(*args[:2])
    return result


def _of_classes(args: Any, result: Any) -> Any:
    """Checks the weights of classes (NLLLoss2d.cu, Loss.cu)."""
    if args[2] is not None and args[2].dtype != args[0].dtype:
        raise RuntimeError(f"expected scalar type {NAMES[args[0].dtype]} but found {NAMES[args[2].dtype]}")
    return result


def _check_alike(first: Tensor, *others: Tensor) -> None:
    """Raise RuntimeError, in torch's words, where operands of a kernel for one type are of several."""
    for each in others:
        if each.dtype != first.dtype:
            raise RuntimeError(f"Found dtype {NAMES[each.dtype]} but expected {NAMES[first.dtype]}")


def _indexed(args: Any, result: Tensor) -> Tensor:
    """Result with the strides that those of the indices give it, where the source's do not decide (`build_index_op`
    in TensorAdvancedIndexing.cpp)."""
    x, indices = args[0], [*args[1], *[None] * (args[0].dim() - len(args[1]))]
    if x.is_contiguous() and all(each is None or each.is_contiguous() for each in indices):
        return result
    dims = [dim for dim, each in enumerate(indices) if each is not None]
    others = [dim for dim, each in enumerate(indices) if each is None]
    first = 0 if dims[-1] - dims[0] >= len(dims) else dims[0]  # those with indices between them go behind them
    with _disable_current_modes():
        looks = [torch.empty_strided(each.shape, each.stride(), device="meta") for each in indices if each is not None]
        spread = torch.broadcast_tensors(*looks)  # type: ignore[no-untyped-call]
        alike = len({each.reshape(*each.shape, 1).stride() for each in spread}) == 1
        place = (spread[0] if alike else spread[0].contiguous())[(..., *[None] * (len(others) - first))]
    strides = [x.stride(dim) for dim in others]
    strides[first:first] = [0] * spread[0].dim()
    return _strided(result, _iterated(((tuple(result.shape), tuple(strides)), (tuple(place.shape), place.stride()))))


def _strided(result: Tensor, strides: tuple[int, ...]) -> Tensor:
    if strides == result.stride():
        return result
    return torch.empty_strided(result.shape, strides, dtype=result.dtype, device=result.device)


@functools.lru_cache(maxsize=4096)
def _iterated(looks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]) -> tuple[int, ...]:
    """Strides of what an operation on each element of these, given by sizes and strides, makes."""
    with _disable_current_modes():
        operands = [torch.empty_strided(*each, device="meta") for each in looks]
        return torch.add(operands[0], operands[1] if len(operands) > 1 else 1).stride()


def _contiguous(_: Any, result: Tensor) -> Tensor:
    return _laid_out(result, torch.contiguous_format)


def _laid_out(result: Tensor, wanted: torch.memory_format) -> Tensor:
    made = torch.empty_like(result, memory_format=wanted)
    return result if made.stride() == result.stride() else made


# Each gets an operation's arguments and its result.
LAID_OUT: dict[Any, Callable[[Any, Any], Any]] = {
    **OF_SOME_TYPES,
    _aten.convolution.default: _convolved,
    _aten.convolution_backward.default: _convolved_back,
    _aten.native_batch_norm_backward.default: backward_results,
    _aten.index.Tensor: _indexed,
    _aten.pixel_unshuffle.default: _contiguous,
    **dict.fromkeys((getattr(_aten, name).Tensor for name in ("add", "div", "mul", "sub")), _of_two),
    **dict.fromkeys((_aten.mse_loss_backward.default, _aten.smooth_l1_loss_backward.default), _lost_back),
    _aten.huber_loss.default: _lost,
    _aten.huber_loss_backward.default: _huber_back,
    _aten.binary_cross_entropy.default: _entropy,
    **dict.fromkeys((_aten.nll_loss_forward.default, _aten.nll_loss2d_forward.default), _of_classes),
    **dict.fromkeys((_aten.upsample_bilinear2d.default, _aten.upsample_trilinear3d.default), _interpolated),
}


# Copies


def _reads(call: Call) -> Steps:
    """The input is copied (ReflectionPad.cu, AveragePool3d.cu, AdaptiveAveragePooling3d.cu)."""
    yield from contiguous(call.args[0])


def _reads_and_writes(call: Call) -> Steps:
    """So is the input, and each result made twice (AdaptiveMaxPooling2d.cu, UpSampleBilinear2d.cu with antialiasing,
    UpSampleNearest3d.cu)."""
    yield from contiguous(call.args[0])
    yield from _made_twice(call)


def _maximum_back(call: Call) -> Steps:
    gradient, _, indices = call.args
    yield from contiguous(gradient)
    yield from contiguous(indices)
    yield from _made_twice(call)


def _made_twice(call: Call) -> Steps:
    for each in tensors(call.result):
        if not each.is_contiguous():
            yield empty(each.shape, each.dtype)


RULES: Rules = {
    **dict.fromkeys(("reflection_pad2d", "reflection_pad3d", "avg_pool3d", "_adaptive_avg_pool3d"), _reads),
    "adaptive_max_pool3d": _reads,
    **dict.fromkeys(
        (
            *("adaptive_max_pool2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
            *("upsample_nearest3d", "_upsample_nearest_exact3d"),
            *("upsample_nearest3d_backward", "_upsample_nearest_exact3d_backward"),
        ),
        _reads_and_writes,
    ),
    **dict.fromkeys(("_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward"), _reads),
    "adaptive_max_pool2d_backward": _maximum_back,
}
