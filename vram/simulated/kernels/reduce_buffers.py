"""What a reduction holds on a card while several blocks work on one result: ATen/native/cuda/Reduce.cuh."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

from torch import Tensor

from vram.cards import Card

_MOST_THREADS = 512
_WARP = 32
_LEAST_VALUES, _MOST_VALUES = 16, 256  # that a thread takes
_VECTOR = 4


class _Dimension(NamedTuple):
    size: int
    stride: int  # of the input, elements
    result_stride: int  # 0: it is reduced


def buffers(x: Tensor, dims: Collection[int], value_bytes: int, card: Card) -> tuple[int, int] | None:
    """Bytes of what blocks hand each other, of `value_bytes` a result, and of their semaphores; None where none do.

    `dims`: that are reduced; none means all.
    """
    reduced = {dim % x.dim() for dim in dims} if x.dim() else set()
    shape = _dimensions(x, reduced or set(range(x.dim())))
    inputs = math.prod(each.size for each in shape if not each.result_stride)
    outputs = math.prod(each.size for each in shape if each.result_stride)
    if inputs < _MOST_VALUES or not outputs:
        return None
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
    most = _MOST_THREADS // vector
    width, height = (min(most, _last_power_of_two(size)) for size in (first, second))
    columns = min(width, _WARP)
    rows = min(height, most // columns)
    columns = min(width, most // rows)
    step_in, step_out = (columns, 1) if along else (1, columns)
    values = -(-inputs // step_in)
    if values < min(rows * 16, _MOST_VALUES):  # a warp for each result
        return None
    step_in *= rows
    values = -(-inputs // step_in)
    grid = -(-(outputs // vector) // step_out)
    blocks = _threads(card.compute_capability) // (columns * rows) * card.multiprocessors
    if values < _MOST_VALUES or grid > blocks:
        return None
    shares = max(min(-(-blocks // grid), -(-values // _LEAST_VALUES)), -(-values // _MOST_VALUES))
    if shares <= 1:
        return None
    n_bytes = value_bytes * outputs * shares * (1 if along else columns * vector)
    return n_bytes, 4 * grid


def _dimensions(x: Tensor, reduced: Collection[int]) -> list[_Dimension]:
    """As TensorIterator orders and merges them: those that are reduced first, the fastest first."""
    found, result_stride = [], 1
    for dim in reversed(range(x.dim())):
        if x.shape[dim] != 1:
            found.append(_Dimension(x.shape[dim], x.stride(dim), 0 if dim in reduced else result_stride))
        if dim not in reduced:
            result_stride *= x.shape[dim]
    found.sort(key=lambda each: (bool(each.result_stride), each.stride))
    merged: list[_Dimension] = []
    for each in found:
        if merged and all(merged[-1].size * merged[-1][at] == each[at] for at in (1, 2)):
            merged[-1] = merged[-1]._replace(size=merged[-1].size * each.size)
        else:
            merged.append(each)
    return merged


def _output_vector(x: Tensor, shape: list[_Dimension], fastest: int) -> int:
    """How many results a thread takes at once."""
    vector = _VECTOR
    strides = [each.stride for at, each in enumerate(shape) if at != fastest]
    for size in (x.storage_offset(), shape[fastest].size, *strides):
        while size % vector:
            vector //= 2
    return vector


def _last_power_of_two(size: int) -> int:
    return 1 << (max(size, 1).bit_length() - 1)


def _threads(capability: tuple[int, int]) -> int:
    """That a multiprocessor holds, by the CUDA programming guide."""
    return {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (12, 0): 1536, (12, 1): 1536}.get(capability, 2048)
