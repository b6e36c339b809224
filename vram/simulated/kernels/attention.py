"""Which kernel scaled dot-product attention runs on a card, and what that allocates."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, _cur_sdpa_kernel_backends
from torch.overrides import TorchFunctionMode

from vram.simulated.torch_build import release
from vram.torch_hooks.dispatch import DispatchMode, composite, in_parts

_aten = torch.ops.aten
_attention = torch.nn.functional.scaled_dot_product_attention
_FLASH_FUNC = _aten._scaled_dot_product_flash_attention.default
_EFFICIENT_FUNC = _aten._scaled_dot_product_efficient_attention.default
_CUDNN_FUNC = _aten._scaled_dot_product_cudnn_attention.default
_CUDNN, _FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
_EFFICIENT, _MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
# The order in which torch tries them: in general, and where it prefers cuDNN. It settles that once in a process, for
# the GPU that is there, which need not be the simulated one.
_ORDER, _CUDNN_ORDER = [_FLASH, _EFFICIENT, _MATH, _CUDNN], [_CUDNN, _FLASH, _EFFICIENT, _MATH]
_CUDNN_PREFERRED_ABOVE = 91500  # the CUDA builds of torch 2.11 and later bring a newer one
_HALF = (torch.float16, torch.bfloat16)
_MOST_FLASH_HEAD, _MOST_EFFICIENT_HEAD = 256, 128  # the latter takes larger ones too, but not in one go
_MASK_ALIGNMENT = 8  # elements
_SMALL_SHARED = ((8, 6), (8, 9), (12, 0), (12, 1))  # capabilities whose multiprocessors share less memory
_GROUPED_EFFICIENT = (2, 14)  # from this torch on the memory-efficient kernel takes grouped heads


class FusedAttention(TorchFunctionMode):
    """Inside, `scaled_dot_product_attention` on simulated CUDA runs the kernel that the card would run.

    On fake tensors it would always take the plain mathematics, which materialises N x N. The choice follows
    aten/src/ATen/native/transformers/cuda/sdp_utils.cpp, what is done to masks and heads attention.cpp, torch 2.11 to
    2.13; `torch.nn.attention.sdpa_kernel` is heeded. Not modelled: cuDNN's workspace.
    """

    def __init__(self, compute_capability: tuple[int, int]) -> None:
        super().__init__()
        self._capability = compute_capability

    def __enter__(self) -> Self:
        # Names count too: functions that modes see whole, as `multi_head_attention_forward`, are run without modes.
        self._before = torch.nn.functional.scaled_dot_product_attention
        torch.nn.functional.scaled_dot_product_attention = self._attend
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *exc_info: Any) -> None:
        torch.nn.functional.scaled_dot_product_attention = self._before
        super().__exit__(*exc_info)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _attention:
            return self._attend(*args, **kwargs)
        try:
            return func(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            del args, kwargs  # no frame of its traceback keeps what came before
            raise error.with_traceback(None)  # noqa: B904 (it is the same)

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
        q, k, v, mask = query, key, value, attn_mask
        if q.device.type != "cuda":
            return _attention(q, k, v, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
        if torch.is_autocast_enabled("cuda"):
            q, k, v = _cast(q), _cast(k), _cast(v)
            mask = None if mask is None else _cast(mask)
        chosen = kernel(self._capability, q, k, v, mask, dropout_p=dropout_p, is_causal=is_causal, grouped=enable_gqa)
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, torch.scalar_tensor(float("-inf"), dtype=q.dtype, device=mask.device))
        keeps = torch.is_grad_enabled() and any(each.requires_grad for each in (q, k, v))
        if chosen == _FLASH:
            return _flash(q, k, v, dropout_p, is_causal, scale)
        if chosen == _CUDNN:
            return _first(_CUDNN_FUNC(q, k, v, mask, keeps, dropout_p, is_causal, False, scale=scale))
        if chosen == _EFFICIENT:
            mask = _aligned(mask, q, k)
            return _first(_EFFICIENT_FUNC(q, k, v, mask, keeps, dropout_p, is_causal, scale=scale))
        plain = _aten._scaled_dot_product_attention_math.default
        with _MathOnCuda():  # type: ignore[no-untyped-call]
            return _first(plain(q, k, v, mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa))


class _Operands(NamedTuple):
    """Arguments that decide which kernel runs."""

    capability: tuple[int, int]
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    dropout_p: float
    is_causal: bool
    grouped: bool  # enable_gqa

    @property
    def is_half(self) -> bool:
        return self.q.dtype in _HALF

    @property
    def sizes(self) -> tuple[int, int]:
        """Sizes of a head: of its queries and keys, of its values."""
        return self.q.shape[-1], self.v.shape[-1]

    def heads_fit(self, takes_groups: bool) -> bool:
        heads, key_heads, value_heads = (each.shape[1] for each in (self.q, self.k, self.v))
        if self.grouped and takes_groups:
            return heads % key_heads == 0 and key_heads == value_heads
        return heads == key_heads == value_heads


def kernel(
    capability: tuple[int, int],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    grouped: bool = False,
) -> SDPBackend:
    """The kernel that a card of that compute capability runs; q, k, v [batch, heads, tokens, size].

    `grouped`: enable_gqa. Raises RuntimeError, in torch's words, where all that could are disabled.
    """
    operands = _Operands(capability, q, k, v, mask, dropout_p, is_causal, grouped)
    fusable = _is_fusable(operands)
    for backend in _order(capability):
        if backend == _MATH:
            return backend
        least, fits = _FUSED[backend]
        if fusable and capability >= least and fits(operands):
            return backend
    raise RuntimeError("No available kernel. Aborting execution.")


def _is_fusable(operands: _Operands) -> bool:
    """Whether any fused kernel takes these operands."""
    capability, q, k, v, mask = operands[:5]
    return (
        q.dim() == k.dim() == v.dim() == 4
        and q.dtype == k.dtype == v.dtype
        and q.shape[-1] == k.shape[-1]
        and q.shape[0] == k.shape[0] == v.shape[0]
        and min(q.shape[2], k.shape[2]) > 0
        and (q.shape[-1] == 1 or q.stride(-1) == k.stride(-1) == v.stride(-1) == 1)
        and (mask is None or mask.stride(-1) == 1)
        and (q.dtype != torch.bfloat16 or capability >= (8, 0))
    )


def _fits_flash(operands: _Operands) -> bool:
    size, value_size = operands.sizes
    square = not operands.is_causal or operands.q.shape[2] == operands.k.shape[2]
    fits = operands.is_half and operands.mask is None and square and size == value_size <= _MOST_FLASH_HEAD
    return fits and operands.heads_fit(takes_groups=True) and not _lacks_flash_backward(operands)


def _lacks_flash_backward(operands: _Operands) -> bool:
    """Whether the card has too little shared memory for the backward pass with so large heads."""
    q, k, v = operands.q, operands.k, operands.v
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    size = q.shape[-1]
    return trains and operands.capability in _SMALL_SHARED and size > 192 and (size <= 224 or operands.dropout_p > 0)


def _fits_efficient(operands: _Operands) -> bool:
    capability, q, (size, value_size) = operands.capability, operands.q, operands.sizes
    if not operands.is_half and (q.dtype != torch.float32 or (size == 1 and q.stride(-1) != 1)):
        return False
    alignment = 8 if operands.is_half and capability >= (7, 0) else 4 if capability >= (8, 0) else 1
    return size % alignment == value_size % alignment == 0 and operands.heads_fit(release() >= _GROUPED_EFFICIENT)


def _fits_cudnn(operands: _Operands) -> bool:
    capability, size, value_size = operands.capability, *operands.sizes
    most = 256 if capability == (9, 0) else 128
    sizes = size <= most and value_size <= most
    sizes |= (size, value_size) == (192, 128) and capability[0] in (9, 10)
    exact = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    shaped = operands.mask is None or operands.mask.dim() in (2, 4)
    aligned = size % 8 == value_size % 8 == 0 and (operands.dropout_p * 16).is_integer()
    fits = operands.is_half and sizes and aligned and shaped and operands.k.shape[2] > 1 and not exact
    return fits and operands.heads_fit(takes_groups=True)


# Fused kernels: the least compute capability, and whether one takes the operands.
_FUSED: dict[SDPBackend, tuple[tuple[int, int], Callable[[_Operands], bool]]] = {
    _FLASH: ((8, 0), _fits_flash),
    _EFFICIENT: ((5, 0), _fits_efficient),
    _CUDNN: ((8, 0), _fits_cudnn),
}


def allocated(func: Any, result: Any, args: Any) -> Any:
    """The part of a fused kernel's result that it allocates on a card where no gradient is computed."""
    if func is _CUDNN_FUNC and not args[4]:
        return (result[0], *result[2:])  # no logsumexp
    if func in (_EFFICIENT_FUNC, _aten._efficient_attention_forward.default):
        return result[:2]  # the state of a dropout is kept on the CPU
    return result


class Parts(NamedTuple):
    """Results of flash attention for parts of the keys, before it combines them; a rule by the number of keys."""

    blocks: int
    multiprocessors: int
    size: int  # of a head
    part_bytes: tuple[int, int]  # sums of exponentials, and results

    def sizes_at(self, length: int) -> list[int]:
        """Bytes with so many keys; nothing where they are done in one go."""
        splits = _splits(self.blocks, 2 * self.multiprocessors, self.size, length)
        return [splits * n_bytes for n_bytes in self.part_bytes] if splits > 1 else []


def parts(func: Any, args: Any, multiprocessors: int) -> tuple[Parts, int] | None:
    """The rule for a call of flash attention, and its number of keys; None for other operations."""
    if func is not _FLASH_FUNC or _dropout(args, 3):
        return None
    (batch, heads, queries, size), (_, key_heads, keys, _) = args[0].shape, args[1].shape
    if queries == 1 and heads > key_heads:  # grouped queries take the place of a key head's queries
        heads, queries = key_heads, heads // key_heads
    rounded = -(-size // 32) * 32 if size <= 192 else 256
    blocks, row_bytes = batch * heads * -(-queries // 64), batch * heads * queries * 4
    return Parts(blocks, multiprocessors, size, (row_bytes, row_bytes * rounded)), keys


def sum_bytes(func: Any, args: Any) -> int:
    """Bytes of the float32 sum where half precision has too long a row for one go (kernel_forward.h); else 0."""
    if func is not _EFFICIENT_FUNC or args[0].dtype not in _HALF:
        return 0
    (batch, heads, queries, size), value_size = args[0].shape, args[2].shape[-1]
    return batch * heads * queries * value_size * 4 if max(size, value_size) > _MOST_EFFICIENT_HEAD else 0


def _dropout(args: Any, position: int) -> float:
    return args[position] if len(args) > position else 0.0


@functools.cache
def _splits(blocks: int, multiprocessors: int, size: int, keys: int) -> int:
    """The number of parts in which flash attention does the keys: `num_splits_heuristic` of flash_api.cpp."""
    if blocks >= 0.8 * multiprocessors:
        return 1
    columns = 256 if size <= 64 else 128 if size <= 128 else 64
    steps = -(-keys // columns)
    efficiency = {}
    for splits in range(1, min(128, multiprocessors, steps) + 1):
        if splits == 1 or -(-steps // splits) != -(-steps // (splits - 1)):
            waves = blocks * splits / multiprocessors
            efficiency[splits] = waves / math.ceil(waves)
    enough = 0.85 * max(efficiency.values())
    return next(splits for splits, share in efficiency.items() if share >= enough)


def _order(capability: tuple[int, int]) -> list[SDPBackend]:
    """Enabled kernels, in the order in which they are tried."""
    order = [each for each in _cur_sdpa_kernel_backends(with_priority=True) if each in _ORDER]
    for default in (_ORDER, _CUDNN_ORDER):
        if order == [each for each in default if each in order]:  # nobody chose another
            chosen = _CUDNN_ORDER if _prefers_cudnn(capability) else _ORDER
            return [each for each in chosen if each in order]
    return order


def _prefers_cudnn(capability: tuple[int, int]) -> bool:
    if capability[0] not in (9, 10) or os.environ.get("TORCH_CUDNN_SDPA_DEPRIORITIZED") == "1":
        return False
    version = torch.backends.cudnn.version() if torch.version.cuda else None  # type: ignore[no-untyped-call]
    return version is None or version > _CUDNN_PREFERRED_ABOVE


def _flash(q: Tensor, k: Tensor, v: Tensor, dropout_p: float, is_causal: bool, scale: float | None) -> Tensor:
    size = q.shape[-1]
    pad = -size % 8
    if pad:
        scale = size**-0.5 if scale is None else scale
        q, k, v = (torch.nn.functional.pad(each, (0, pad)) for each in (q, k, v))
    out = _first(_FLASH_FUNC(q, k, v, dropout_p, is_causal, False, scale=scale))
    return out[..., :size] if pad else out


def _cast(tensor: Tensor) -> Tensor:
    """The tensor in the dtype that autocast gives it."""
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype("cuda"))


def _aligned(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """The mask as the memory-efficient kernel takes it: expanded, with aligned rows; a copy where they are not."""
    if mask is None:
        return None
    if any(stride % _MASK_ALIGNMENT for stride in mask.stride()[:-1]):
        columns = mask.shape[-1]
        mask = torch.nn.functional.pad(mask, (0, _MASK_ALIGNMENT - columns % _MASK_ALIGNMENT))[..., :columns]
    return mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])


class _MathOnCuda(DispatchMode):
    """Inside, the plain mathematics allocates as on a card: C++ takes another path where a mode is on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _aten.add.Tensor and not torch.is_grad_enabled():
            return args[0].add_(args[1])  # out of place for fake tensors only
        if func is _aten._safe_softmax.default:
            return _safe_softmax(*args)
        if composite(func):
            with self:
                return in_parts(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _safe_softmax(scores: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    """The operations that a card runs for it, each of which allocates; a dispatch mode sees one."""
    out = scores.softmax(dim, dtype)
    excluded = scores.isneginf()
    rows = excluded.all(dim, keepdim=True)
    zero = torch.scalar_tensor(0.0, dtype=out.dtype, device=out.device)
    return torch.where(rows, zero, out, out=out)


def _first(results: Any) -> Tensor:
    first: Tensor = results[0]
    return first
