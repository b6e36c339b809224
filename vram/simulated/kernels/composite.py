"""Operations that a card composes otherwise than fake tensors do, or has a kernel of its own for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_aten = torch.ops.aten
RMS_NORM = _aten._fused_rms_norm.default
# A card has a kernel for each, which autograd sees as one operation; without CUDA, C++ or fake tensors take them apart.
ONE_KERNEL = {_aten.silu_backward.default, _aten.mish_backward.default, RMS_NORM}
# Composed in C++ of operations that allocate, and so are taken apart.
COMPOSED = {
    _aten._safe_softmax.default,
    _aten.affine_grid_generator.default,
    _aten.allclose.default,
    _aten.binary_cross_entropy_with_logits.default,
    _aten.dist.default,
    _aten.isinf.default,
    _aten.ldexp.Tensor,
    _aten.mvlgamma.default,
    _aten.soft_margin_loss.default,
    _aten.soft_margin_loss.out,
    _aten.soft_margin_loss_backward.default,
    _aten.soft_margin_loss_backward.grad_input,
}


def grouped_product(
    first: Tensor, second: Tensor, offsets: Tensor | None = None, bias: Any = None, out_dtype: torch.dtype | None = None
) -> Tensor:
    """The result of `grouped_mm`: rows of whole 16 bytes; for two matrices, a product for each group.

    Source: `create_grouped_gemm_output_tensor` in aten/src/ATen/native/GroupedMMUtils.h. Fake tensors take bfloat16
    alone, and pad rows only in a torch that was built with CUDA.
    """
    groups = [offsets.shape[0]] if offsets is not None and first.dim() == second.dim() == 2 else []
    groups += [first.shape[0]] if first.dim() == second.dim() == 3 else []
    shape = [*groups, first.shape[-2], second.shape[-1]]
    dtype = out_dtype or first.dtype
    aligned = 16 // dtype.itemsize
    row = -(-shape[-1] // aligned) * aligned
    return torch.empty_strided(shape, [shape[-2] * row, row, 1][-len(shape) :], dtype=dtype, device=first.device)


def rms_norm(x: Tensor, shape: Sequence[int], *_: Any) -> tuple[Tensor, Tensor]:
    """The kernel's result, and a number for each row, in float32 for half precision.

    Source: `_fused_rms_norm_cuda` in aten/src/ATen/native/cuda/layer_norm_kernel.cu. The CPU composes it of others.
    """
    rows = [*x.shape[: x.dim() - len(shape)], *[1] * len(shape)]
    precise = torch.float64 if x.dtype is torch.float64 else torch.float32
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(rows, dtype=precise)


def gru_cell(_input_gates: Tensor, _hidden_gates: Tensor, hidden: Tensor, *_biases: Tensor | None) -> list[Tensor]:
    """The next state, and the five numbers a unit that its backward pass reads. Fake tensors have no rule for it.

    Source: aten/src/ATen/native/cuda/RNN.cu, for the backward pass too.
    """
    samples, units = hidden.shape
    kept = hidden.new_empty((samples, 5 * units))
    return [torch.empty_like(hidden, memory_format=torch.contiguous_format), kept]


def gru_cell_back(gradient: Tensor, kept: Tensor, has_bias: bool) -> list[Tensor | None]:
    """Gradients of both operands' gates, of the state, and of both biases."""
    samples, units = gradient.shape
    of_gates = [kept.new_empty((samples, 3 * units)) for _ in range(2)]
    of_biases = [kept.new_empty((3 * units,)) if has_bias else None for _ in range(2)]
    return [*of_gates, torch.empty_like(gradient, memory_format=torch.contiguous_format), *of_biases]


def lstm_cell(input_gates: Tensor, _hidden_gates: Tensor, cells: Tensor, *_biases: Tensor | None) -> list[Tensor]:
    """The next state and cells, and four numbers a unit. Fake tensors have no rule for a layer without biases."""
    return [torch.empty_like(each, memory_format=torch.contiguous_format) for each in (cells, cells, input_gates)]


def takes_one_hot(tensor: Any) -> bool:
    """Whether these are classes on a card; with others, torch's own function says what is wrong."""
    return isinstance(tensor, FakeTensor) and tensor.device.type == "cuda" and tensor.dtype == torch.int64


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """One hot as C++ makes it on a card; with fake tensors it would compare with each class."""
    n_classes = int(tensor.max()) + 1 if num_classes == -1 else num_classes
    return tensor.new_zeros((*tensor.shape, n_classes)).scatter_(-1, tensor.unsqueeze(-1), 1)


# Kernels of a card that fake tensors have no rule for, or another.
OF_A_CARD: dict[Any, Callable[..., Sequence[Tensor | None]]] = {
    RMS_NORM: rms_norm,
    _aten._thnn_fused_lstm_cell.default: lstm_cell,
    _aten._thnn_fused_gru_cell.default: gru_cell,
    _aten._thnn_fused_gru_cell_backward.default: gru_cell_back,
}
