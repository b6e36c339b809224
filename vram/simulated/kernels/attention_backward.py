"""Allocations of the backward passes of fused attention besides their results.

Sources: aten/src/ATen/native/transformers/cuda: attention_backward.cu, flash_attn/flash_api.cpp, and
mem_eff_attention/kernel_backward.h with the table of kernels that generate_kernels.py makes, for Ampere and later.

Sizes are [batch, heads, tokens, head size], as in the calls.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vram.simulated.kernels.call import HALF, Call, Rules, Steps, clone, empty, of_bytes
from vram.simulated.kernels.call import contiguous as copied_unless_contiguous

_LARGE_SHARED = ((8, 0), (9, 0), (10, 0), (10, 3))  # capabilities whose multiprocessors share over 160 KiB
_TILE_HEADER = 4  # numbers before each tile of the queries' gradient
_MOST_SPLITS = 200  # of keys, over all heads
_ENOUGH_BLOCKS = 256


class _Kernel(NamedTuple):
    """A kernel of the memory-efficient attention: rows of queries and of keys in a block, columns of a tile."""

    queries: int
    keys: int
    columns: int
    accumulates: bool  # the gradients of keys and values, in float32


def _kernel(capability: tuple[int, int], dtype: torch.dtype, size: int, *, dropout: bool) -> _Kernel:
    large, half = capability in _LARGE_SHARED, dtype in HALF
    if size <= 64:
        return _Kernel(64, 64, 64, accumulates=False)
    if not half:
        return _Kernel(128 if large else 64, 64, 64, accumulates=False)
    if size > 128:
        return _Kernel(128, 64, 64, accumulates=True)
    if large:
        return _Kernel(128, 128, 128, accumulates=False)
    if size <= 96 and not dropout:
        return _Kernel(128, 64, 64, accumulates=False)
    return _Kernel(64, 64, 64, accumulates=True)


def _workspace_bytes(call: Call, q: Tensor, k: Tensor, v: Tensor, *, dropout: bool) -> int:
    (batch, heads, queries, size), keys, value_size = q.shape, k.shape[2], v.shape[-1]
    kernel = _kernel(call.card.compute_capability, q.dtype, max(size, value_size), dropout=dropout)
    tiles = _blocks(queries, kernel.queries) * _blocks(size, kernel.columns)
    numbers = tiles * (_TILE_HEADER + kernel.queries * kernel.columns)
    if kernel.accumulates:
        splits = _blocks(keys, kernel.keys)
        if batch * heads >= _ENOUGH_BLOCKS and keys <= 2 * kernel.keys:
            splits = 1
        splits = max(1, min(splits, _MOST_SPLITS // (batch * heads)))
        if torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled():
            splits = 1
        wide = sum(_blocks(each, kernel.queries) * kernel.queries for each in (size, value_size))
        numbers += splits * kernel.keys * wide
    return batch * heads * _blocks(numbers, 4) * 4 * 4


def _blocks(n: int, size: int) -> int:
    return -(-n // size)


def _efficient(call: Call) -> Steps:
    """The sums of rows by which scores are reduced, made by operations in float32, and the workspace."""
    _, q, k, v = call.args[:4]
    batch, heads, queries, _ = q.shape
    delta = empty((batch, heads, queries), torch.float32)
    if q.dtype in HALF:
        yield delta
    else:  # of products of the gradient and the result, their sums, and those with the heads first
        yield empty((batch, queries, heads, v.shape[-1]), torch.float32)
        yield delta
        yield delta
        yield 1
        yield 0
    yield of_bytes(_workspace_bytes(call, q, k, v, dropout=call.argument(9, "dropout_p", 0.0) > 0))
    yield 0


def _flash(call: Call) -> Steps:
    """Sums of rows, the queries' gradient in float32, and that of each query's head where several share keys."""
    _, q, k = call.args[:3]
    (batch, heads, queries, size), (_, key_heads, keys, _) = q.shape, k.shape
    rows = _blocks(queries, 128) * 128
    wide = _blocks(size, 32) * 32 if size <= 192 else 256
    yield empty((batch, heads, rows), torch.float32)
    yield empty((batch, rows, heads, wide), torch.float32)
    if heads != key_heads:
        yield empty((batch, keys, heads, size), q.dtype)
        yield empty((batch, keys, heads, size), q.dtype)


def _flash_copies(call: Call) -> Steps:
    """The gradient and the result with heads beside each other, where they are not."""
    for each in (call.args[0], call.args[4]):
        yield from copied_unless_contiguous(each.transpose(1, 2))


def _efficient_copy(call: Call) -> Steps:
    """The gradient with heads beside each other, where they are not."""
    yield from copied_unless_contiguous(call.args[0].transpose(1, 2))


def _cudnn_copy(call: Call) -> Steps:
    """The gradient in the layout of the result, where it has another."""
    if call.args[0].stride() != call.args[4].stride():
        yield clone(call.args[0])


def _cudnn(call: Call) -> Steps:
    """The sums of rows and the queries' gradient in float32, which its frontend asks for in one piece."""
    batch, heads, queries, size = call.args[1].shape
    yield of_bytes(batch * heads * queries * (size + 1) * 4)


RULES: Rules = {
    "_scaled_dot_product_efficient_attention_backward": _efficient,
    "_scaled_dot_product_flash_attention_backward": _flash,
    "_scaled_dot_product_cudnn_attention_backward": _cudnn,
}
# Before the results, and until the end.
AROUND: Rules = {
    "_scaled_dot_product_efficient_attention_backward": _efficient_copy,
    "_scaled_dot_product_flash_attention_backward": _flash_copies,
    "_scaled_dot_product_cudnn_attention_backward": _cudnn_copy,
}
