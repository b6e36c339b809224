"""Which kernel scaled dot-product attention runs on a card, and what that allocates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_aten = torch.ops.aten
_HALF = (torch.float16, torch.bfloat16)
_MOST_FLASH_HEAD = 256
_MASK_ALIGNMENT_BYTES = 16


class FusedAttention(TorchFunctionMode):
    """Inside, `scaled_dot_product_attention` on simulated CUDA runs the kernel that the card would run.

    On fake tensors it would always take the plain mathematics, which materialises N x N. The choice follows
    aten/src/ATen/native/transformers/cuda/sdp_utils.cpp: flash for half precision without a mask from compute
    capability 8.0 on, with heads of up to 256; else the memory-efficient kernel; else mathematics, also for
    grouped heads with a mask. Not modelled: dropout, and cuDNN's kernel, which torch may prefer from 9.0 on.
    """

    def __init__(self, compute_capability: tuple[int, int]) -> None:
        super().__init__()
        self._capability = compute_capability

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        chosen = kernel(self._capability, query, key, value, attn_mask)
        if query.device.type == "cuda" and chosen == "flash":
            return _flash(query, key, value, dropout_p, is_causal, scale)
        if query.device.type == "cuda" and chosen == "efficient":
            return _efficient(query, key, value, attn_mask, dropout_p, is_causal, scale)
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )


def kernel(capability: tuple[int, int], query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> str:
    """ "flash", "efficient" or "math"; q, k, v [batch, heads, tokens, size]."""
    half, size = query.dtype in _HALF, query.shape[-1]
    if query.dim() != 4 or key.dtype != query.dtype or not (half or query.dtype == torch.float32):
        return "math"
    if mask is None and half and capability >= (8, 0) and size <= _MOST_FLASH_HEAD and value.shape[-1] == size:
        return "flash"
    if key.shape[1] != query.shape[1] or (query.dtype == torch.bfloat16 and capability < (8, 0)):
        return "math"
    return "efficient"


def _flash(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, is_causal: bool, scale: float | None) -> Tensor:
    size = q.shape[-1]
    pad = -size % 8
    if pad:
        scale = size**-0.5 if scale is None else scale
        q, k, v = (torch.nn.functional.pad(each, (0, pad)) for each in (q, k, v))
    out: Tensor = _aten._scaled_dot_product_flash_attention.default(q, k, v, dropout_p, is_causal, False, scale=scale)[
        0
    ]
    return out[..., :size] if pad else out


def _efficient(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float, is_causal: bool, scale: float | None
) -> Tensor:
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask.logical_not(), float("-inf"))
        pad = -mask.shape[-1] % (_MASK_ALIGNMENT_BYTES // mask.element_size())
        if pad:  # a copy with aligned rows
            mask = torch.nn.functional.pad(mask, (0, pad))[..., : mask.shape[-1]]
        mask = mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    keeps = torch.is_grad_enabled() and any(each.requires_grad for each in (q, k, v))
    out: Tensor = _aten._scaled_dot_product_efficient_attention.default(
        q, k, v, mask, keeps, dropout_p, is_causal, scale=scale
    )[0]
    return out
