"""Memory for cuBLAS: workspaces that PyTorch takes from its caching allocator and keeps, and copies of odd operands.

Sources: `aten/src/ATen/cuda/CublasHandlePool.cpp` and `aten/src/ATen/native/cuda/Blas.cpp`, whose rules changed from
version to version.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_KIB = 1024
_LT_WORKSPACE_BYTES = 1024 * _KIB
# The positions of its matrices among the arguments, by operation.
_MATRICES = {"mm": (0, 1), "bmm": (0, 1), "mv": (0,), "_int_mm": (0, 1)}
_MATRICES |= dict.fromkeys(("addmm", "baddbmm", "addbmm", "_addmm_activation"), (1, 2)) | {"addmv": (1,)}
_OTHERS = {"dot", "vdot", "_scaled_mm", "_euclidean_dist"}
_FUSED_KINDS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def is_product(func: Any) -> bool:
    """Whether cuBLAS computes it."""
    name = _name(func)
    return name in _MATRICES or name in _OTHERS


def by_triton(func: Any, args: Any, version: tuple[int, int]) -> bool:
    """Whether a kernel of Triton, which comes with torch for CUDA, computes it: outer products from 2.13 on.

    Source: torch/_native/ops/bmm_outer_product.
    """
    return version >= (2, 13) and func is torch.ops.aten.bmm.default and args[0].shape[2] == 1 and args[1].numel() > 0


def workspace_bytes(capability: tuple[int, int], version: tuple[int, int], setting: str | None) -> int:
    """Bytes for a handle and stream; `setting`: CUBLAS_WORKSPACE_CONFIG, as ":4096:2:16:8" (KiB, number, in turn)."""
    buffers = re.findall(r":([0-9]+):([0-9]+)", setting or "")
    if buffers:
        return sum(int(size) * int(number) for size, number in buffers) * _KIB
    # Compute capability 9.0 first, Blackwell in 2.12 (pull request 175344), any of those in 2.14 (189312).
    if version >= (2, 14):
        large = 9 <= capability[0] <= 12
    elif version >= (2, 12):
        large = capability[0] in (9, 10, 12)
    else:
        large = capability == (9, 0)
    return (32 * 1024 if large else 2 * 4096 + 8 * 16) * _KIB


def lt_workspace_bytes(version: tuple[int, int]) -> int:
    """Bytes for cuBLASLt, which shares cuBLAS's from 2.12 on (pull request 175879)."""
    return 0 if version >= (2, 12) else _LT_WORKSPACE_BYTES


def takes_lt(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether cuBLASLt computes it: a product with a bias that it adds on the way."""
    if _name(func) not in ("addmm", "_addmm_activation"):
        return False
    bias, first, second = args[:3]
    return bool(
        kwargs.get("beta", 1) == 1
        and bias.dim() == 1
        and bias.is_contiguous()
        and bias.shape[0] == second.shape[1]
        and first.dtype in _FUSED_KINDS
        and min(second.shape) > 1
    )


def unreadable_operands(func: Any, args: Any) -> Iterator[Tensor]:
    """Operands with strides that cuBLAS can't read; PyTorch copies them for the time of the product."""
    for position in _MATRICES.get(_name(func), ()):
        if not _readable(args[position]):
            yield args[position]


@functools.cache
def _name(func: Any) -> str:
    """The operation's name without its variant: "addmm" for aten.addmm_.default and aten.addmm.out too."""
    name: str = func._schema.name.removeprefix("aten::")
    return name.removesuffix("_")


def _readable(matrix: Tensor) -> bool:
    """Whether its rows or columns are whole, with a fixed distance from each to the next."""
    *_, rows, columns = matrix.shape
    *_, down, right = matrix.stride()
    if (right == 1 and down >= max(1, columns)) or (down == 1 and right >= max(1, rows)):
        return True
    if matrix.dim() == 2:
        return (rows == 1 and right == 1) or (columns == 1 and down == 1) or matrix.numel() == 1
    return matrix.is_contiguous() and 0 not in (down, right)
