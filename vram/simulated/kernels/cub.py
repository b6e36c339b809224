"""Temporary storage of algorithms in CUB, NVIDIA's library of primitives: their `temp_storage_bytes`.

The layouts are those of cub/device/dispatch. The size of a tile depends on the architecture; the numbers are those of
CUDA 13.0, as PyTorch 2.11 to 2.14 request them (benchmarks/cardless).
"""

from __future__ import annotations

from vram.cards import Card
from vram.simulated.kernels.reduce_buffers import threads_of_multiprocessor

_ALIGNMENT = 256
_PADDING = 32  # tiles that each look back may read before the first
_RADIX_BITS = 8
_SCAN_TILES = {1: 3840, 2: 3840, 4: 1920, 8: 896, 16: 384}  # elements, by bytes of one
_SCAN_BY_KEY_TILE = 3840  # of an A100; larger on later cards, which more than a million numbers would show
_SELECT_TILES = {7: 640, 8: 640, 9: 4224, 10: 3520}
_SELECT_TILE_OF_A100 = 2304
_SORT_TILES = {7: {4: 2816, 8: 2816}, 8: {4: 3072, 8: 3840}, 9: {2: 5632, 4: 5376, 8: 4608}}
_REDUCE_TILE, _REDUCE_THREADS, _REDUCE_SHARES = 4096, 256, 5  # of a block; and blocks in turn, where it has its place
_MOST_AT_ONCE = 2**28 - 1  # pairs that one pass of a sort takes; more go in portions
_MOST_IN_ONE_TILE = 2304  # pairs that a single block sorts, by itself


def scan_bytes(n: int, itemsize: int, *, apart: bool = False) -> int:
    """Bytes for `DeviceScan` over `n` elements. `apart`: their kind does not fit a single word with its state."""
    tiles = -(-n // _SCAN_TILES[itemsize]) + _PADDING
    if apart:
        return _sum(4 * tiles, itemsize * tiles, itemsize * tiles, 1)
    return _sum(max(4, 2 * itemsize) * tiles, 1)


def scan_by_key_bytes(n: int) -> int:
    """Bytes for `DeviceScan::InclusiveSumByKey` over `n` numbers of 4 bytes."""
    tiles = -(-n // _SCAN_BY_KEY_TILE)
    return _sum(16 * (tiles + _PADDING), 4 * tiles)


def select_bytes(n: int, capability: tuple[int, int]) -> int:
    """Bytes for `DeviceSelect` among `n` elements, which returns places."""
    tile = _SELECT_TILE_OF_A100 if capability == (8, 0) else _SELECT_TILES[min(max(capability[0], 7), 10)]
    return _sum(8 * (-(-n // tile) + _PADDING), 1)


def sum_bytes(n: int, card: Card) -> int:
    """Bytes for `DeviceReduce::Sum` of `n` truths into 4 bytes.

    Its kernels have at most 32 registers a thread, so that as many blocks fit a multiprocessor as it has threads for.
    """
    if n <= _REDUCE_TILE:
        return 1
    blocks = threads_of_multiprocessor(card.compute_capability) // _REDUCE_THREADS * card.multiprocessors
    return _sum(4 * _REDUCE_SHARES * blocks)


def sort_bytes(
    n: int, key_bytes: int, capability: tuple[int, int], bits: int | None = None, value_bytes: int = 8
) -> int:
    """Bytes for `DeviceRadixSort` of `n` pairs by `bits` of their keys.

    Not counted for keys of 2 bytes before compute capability 9.0: it depends on how many blocks fit a multiprocessor.
    Tiles are those of values of 8 bytes.
    """
    if bits is not None and n <= _MOST_IN_ONE_TILE:
        return 1
    passes = -(-(bits or 8 * key_bytes) // _RADIX_BITS)
    spare = [n * key_bytes, n * value_bytes] if passes > 1 else [0, 0]
    tile = _SORT_TILES[min(max(capability[0], 7), 9)].get(key_bytes)
    if tile is None:
        return _sum(*spare)
    tiles = min(-(-n // tile), _MOST_AT_ONCE // tile)
    return _sum(passes * 2048, 1024 * tiles, 4 * passes, *spare)


def segmented_sort_bytes(n: int, key_bytes: int) -> int:
    """Bytes for `DeviceSegmentedRadixSort` of `n` pairs with values of 8 bytes."""
    return _sum(n * key_bytes, n * 8)


def _sum(*parts: int) -> int:
    """The size of one piece of memory, which may begin anywhere, for CUB's parts of it."""
    return sum(-(-part // _ALIGNMENT) * _ALIGNMENT for part in parts) + _ALIGNMENT - 1
