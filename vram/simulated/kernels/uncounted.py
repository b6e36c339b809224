"""Operations for which a library, or a kernel of torch, takes memory that no rule here knows."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from vram.simulated.kernels.call import HALF, Call, name
from vram.simulated.kernels.sorting import MOST_SORTED_WITHIN_BLOCKS
from vram.simulated.operations import arguments, tensors

_CAP = "CUDNN_CONV_WSCAP_DBG"  # cuDNN's own limit of a convolution's workspace, MiB
_AMPERE, _HOPPER = (8, 0), (9, 0)
_MOST_ADDED_UNSORTED = 3072  # gradients of embeddings (Embedding.cu)
_CONVOLUTION, _ATTENTION = "cuDNN's workspace of a convolution", "cuDNN's workspace of attention"
_ATTENTION_ALONE = "copies and sums of an operation of attention that is called by itself"
_FFT, _LINALG = "cuFFT's workspace", "the workspace of a decomposition (cuSOLVER, MAGMA)"
_WITHOUT = {"linalg_cross", "linalg_matrix_exp", "linalg_solve_triangular", "linalg_vector_norm"}
_BY_KERNELS = (
    *("_trilinear", "_unique", "_unique2", "multi_margin_loss", "multilabel_margin_loss_forward"),
    *("lu_unpack", "nonzero_static", "unique_consecutive", "unique_dim", "unique_dim_consecutive"),
)
_IN_ANY_ORDER = ("index_add", "index_copy", "index_put", "_index_put_impl", "put", "scatter", "scatter_add")
_BY_CALL = (*_IN_ANY_ORDER, "sort", "_scaled_dot_product_efficient_attention_backward", "embedding_dense_backward")
_WHOSE = {
    **dict.fromkeys(("convolution", "convolution_backward", "cudnn_convolution"), _CONVOLUTION),
    "cudnn_convolution_transpose": _CONVOLUTION,
    "_scaled_dot_product_cudnn_attention": _ATTENTION,
    "_scaled_dot_product_cudnn_attention_backward": _ATTENTION,
    **{
        f"_{kernel}_attention_{way}": _ATTENTION_ALONE
        for kernel in ("efficient", "flash")
        for way in ("forward", "backward")
    },
    **dict.fromkeys(("_fft_c2c", "_fft_c2r", "_fft_r2c"), _FFT),
    **dict.fromkeys(("_cholesky_solve_helper", "cholesky_inverse", "cholesky_solve", "geqrf", "ormqr"), _LINALG),
    "_embedding_bag_dense_backward": "temporary memory of the gradient of an embedding bag",
    **{kernel: f"temporary memory of {kernel.strip('_')}" for kernel in _BY_KERNELS},
}


def whose_memory(call: Call) -> str:
    """Whose memory is not counted in an operation on the card, in words; "" where all is."""
    operation = name(call.func)
    if operation in _IN_ANY_ORDER:
        in_order = torch.are_deterministic_algorithms_enabled()
        return "temporary memory of deterministic algorithms" if in_order else ""
    if operation == "sort":
        return "temporary memory of a sort of half precision" if _by_radix(call) else ""
    if operation == "_scaled_dot_product_efficient_attention_backward" and call.card.compute_capability < _AMPERE:
        return "part of the workspace of attention's backward pass before Ampere"
    if operation == "embedding_dense_backward":
        return "temporary memory of the gradient of an embedding" if _sorts_its_indices(call) else ""
    if _decomposes(operation):
        return _LINALG
    return _WHOSE.get(operation, "")


def may_be_uncounted(operation: str) -> bool:
    """Whether there are calls of an operation with that name for which `whose_memory` has words."""
    return operation in _BY_CALL or operation in _WHOSE or _decomposes(operation)


def _decomposes(operation: str) -> bool:
    return operation.startswith(("linalg_", "_linalg_")) and operation not in _WITHOUT


def _by_radix(call: Call) -> bool:
    """Whether rows of half precision are sorted by CUB, which before Hopper takes what no rule here knows."""
    named = arguments(call.func, call.args, call.kwargs)
    x, dim = named["self"], named["dim"]
    long = x.dim() > 0 and x.shape[dim] > MOST_SORTED_WITHIN_BLOCKS
    return long and x.dtype in HALF and call.card.compute_capability < _HOPPER


def _sorts_its_indices(call: Call) -> bool:
    """Whether rows of the gradient are added up in the order of their indices, in parts whose number they decide."""
    by_frequency = call.argument(4, "scale_grad_by_freq", False)
    return bool(by_frequency) or call.args[1].numel() > _MOST_ADDED_UNSORTED


def bound(whose: str, environment: Mapping[str, str] = os.environ) -> tuple[int | None, str]:
    """The most bytes that are taken, and what says so; None and "" where nobody does."""
    cap = environment.get(_CAP, "")
    if whose != _CONVOLUTION or not cap.isdecimal():
        return None, ""
    return int(cap) * 2**20, f"{_CAP}={cap}"


def operand_bytes(call: Call) -> int:
    """Bytes of operands and results on the card."""
    there = [each for each in tensors([call.args, call.kwargs, call.result]) if each.device.type == "cuda"]
    return sum(each.numel() * each.itemsize for each in there if each.layout is torch.strided)
