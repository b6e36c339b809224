"""Buffers of a reduction in which several blocks work on one result: ATen/native/cuda/Reduce.cuh."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from vram.cards import Card

_MOST_THREADS, _MOST_OF_WIDE = 512, 256  # the second of complex numbers of 128 bits
_WARP = 32
_LEAST_VALUES, _MOST_VALUES = 16, 256  # that a thread takes
_VECTOR = 4


class _Dimension(NamedTuple):
    size: int
    stride: int  # of the input, elements
    result_stride: int  # 0: it is reduced


class _Block(NamedTuple):
    """How the threads of a block share the work, as `setReduceConfig` has it."""

    columns: int
    rows: int
    along: bool  # columns are values of one result, else results
    vector: int  # results that a thread takes at once


def buffers(x: Tensor, dims: Collection[int], value_bytes: int, card: Card) -> tuple[int, int] | None:
    """Bytes of values that blocks pass on, of `value_bytes` each, and of their semaphores; None for blocks alone.

    `dims`: those that are reduced; none means all.
    """
    reduced = {dim % x.dim() for dim in dims} if x.dim() else set()
    shape = _dimensions(x, reduced or set(range(x.dim())))
    inputs = math.prod(each.size for each in shape if not each.result_stride)
    outputs = math.prod(each.size for each in shape if each.result_stride)
    if inputs < _MOST_VALUES or not outputs:
        return None
    block = _block(x, shape, inputs, outputs)
    values = -(-inputs // (block.columns if block.along else 1))  # of a thread
    if values < min(block.rows * 16, _MOST_VALUES):  # a warp for each result
        return None
    values = -(-inputs // ((block.columns if block.along else 1) * block.rows))
    grid = -(-(outputs // block.vector) // (1 if block.along else block.columns))
    blocks = threads_of_multiprocessor(card.compute_capability) // (block.columns * block.rows) * card.multiprocessors
    if values < _MOST_VALUES or grid > blocks:
        return None
    shares = max(min(-(-blocks // grid), -(-values // _LEAST_VALUES)), -(-values // _MOST_VALUES))
    if shares <= 1:
        return None
    n_bytes = value_bytes * outputs * shares * (1 if block.along else block.columns * block.vector)
    return n_bytes, 4 * grid


def _block(x: Tensor, shape: list[_Dimension], inputs: int, outputs: int) -> _Block:
    n_reduced = sum(not each.result_stride for each in shape)
    along = n_reduced == len(shape) or shape[0].stride < shape[n_reduced].stride
    vector = 1
    if along:
        first, second = inputs, outputs
        if shape[0].stride == 1 and first > 128 and len(shape) == 1:
            first //= _VECTOR
    else:
        first, second = outputs, inputs
        if shape[n_reduced].stride == 1:
            vector = _output_vector(x, shape, n_reduced)
            first //= vector
    most = (_MOST_OF_WIDE if x.dtype == torch.complex128 else _MOST_THREADS) // vector
    width, height = (min(most, _last_power_of_two(size)) for size in (first, second))
    rows = min(height, most // min(width, _WARP))
    return _Block(min(width, most // rows), rows, along, vector)


def _dimensions(x: Tensor, reduced: Collection[int]) -> list[_Dimension]:
    """Dimensions as TensorIterator orders and merges them: those that are reduced first, the fastest first."""
    dimensions, result_stride = [], 1
    for dim in reversed(range(x.dim())):
        if x.shape[dim] != 1:
            dimensions.append(_Dimension(x.shape[dim], x.stride(dim), 0 if dim in reduced else result_stride))
        if dim not in reduced:
            result_stride *= x.shape[dim]
    dimensions.sort(key=lambda each: (bool(each.result_stride), each.stride))
    merged: list[_Dimension] = []
    for each in dimensions:
        if merged and all(merged[-1].size * merged[-1][at] == each[at] for at in (1, 2)):
            merged[-1] = merged[-1]._replace(size=merged[-1].size * each.size)
        else:
            merged.append(each)
    return merged


def _output_vector(x: Tensor, shape: list[_Dimension], fastest: int) -> int:
    """Results that a thread takes at once."""
    vector = _VECTOR
    strides = [each.stride for at, each in enumerate(shape) if at != fastest]
    for size in (x.storage_offset(), shape[fastest].size, *strides):
        while size % vector:
            vector //= 2
    return vector


def _last_power_of_two(size: int) -> int:
    return 1 << (max(size, 1).bit_length() - 1)


def threads_of_multiprocessor(capability: tuple[int, int]) -> int:
    """Threads that a multiprocessor holds, from the CUDA programming guide."""
    return {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (12, 0): 1536, (12, 1): 1536}.get(capability, 2048)
