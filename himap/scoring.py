"""How much later tokens look at the image: column sums of attention, without ever building the attention map.

Shape letters: H query heads, G key heads, R rows (queries), N keys, D head size, C scored columns.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

TILE_BYTES = 32 * 2**20


def column_scores(
    query_HRD: Tensor,
    key_GND: Tensor,
    rows: range,
    columns: range,
    scaling: float,
    tile_bytes: int = TILE_BYTES,
    rotate: Callable[[Tensor, range], Tensor] | None = None,
    all_heads: int | None = None,
) -> Tensor:
    """Float32 scores_C: causal attention of `rows` to `columns`, mean over heads, summed over rows.

    Where other processes have heads of the layer, too, `all_heads` counts these: the share of the mean that is H's.

    Row r of `query_HRD` stands at sequence index `rows[r]` and sees keys 0..rows[r]. Heads and rows are worked through
    in tiles, so that at most `tile_bytes` are used beside the inputs at any length (one row of one key head at least).
    `rotate` gives queries or keys (..., tokens, D) at a range of sequence indices their rotary positions, tile by tile
    as well: at once, that alone would take several copies of all keys. Autocast is off inside.
    Source: HiMAP (arXiv 2503.13108), modality-aware scores; the original reads them off the materialised map.
    """
    heads, n_rows, size = query_HRD.shape
    key_heads, length = key_GND.shape[0], max(rows.stop, columns.stop)  # no row sees a later key
    group = heads // key_heads
    row_tile, head_tile = _tiles(n_rows, key_heads, group, length, size, tile_bytes, rotated=rotate is not None)
    scores_C = torch.zeros(len(columns), dtype=torch.float32, device=query_HRD.device)
    with no_autocast(query_HRD.device):
        for head in range(0, key_heads, head_tile):
            key = key_GND[head : head + head_tile, :length]
            if rotate is not None:
                key = rotate(key, range(length)).float()
            for row in range(0, n_rows, row_tile):
                query = query_HRD[head * group : (head + head_tile) * group, row : row + row_tile]
                if rotate is not None:
                    query = rotate(query, rows[row : row + row_tile])
                scores_C += _tile_sums(query, key, rows.start + row, columns, scaling)
            del key  # or it would stay while the next one is made
    return scores_C / (all_heads or heads)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Inside, float32 products are float32 whatever surrounds them."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _tile_sums(query_HRD: Tensor, key_GND: Tensor, first_row: int, columns: range, scaling: float) -> Tensor:
    """Sums_C over heads and rows, the first of which stands at `first_row`. Its tensors die with the call."""
    key_heads, length, size = key_GND.shape
    # Query heads that share a key head become rows of one product: broadcasting would copy the keys.
    query = (query_HRD.float() * scaling).reshape(key_heads, -1, size)
    logits = (query @ key_GND.float().transpose(-1, -2)).view(*query_HRD.shape[:2], length)
    # Keys before the first row are seen by all, and need no mask.
    row_index_R = torch.arange(query_HRD.shape[1], device=logits.device)
    later_index = torch.arange(length - first_row, device=logits.device)
    logits[..., first_row:].masked_fill_(later_index > row_index_R[:, None], float("-inf"))
    attention = logits.softmax(dim=-1)
    del logits
    return _sums_of_columns(attention[..., columns.start : columns.stop].flatten(0, 1))


def _sums_of_columns(values_RC: Tensor) -> Tensor:
    """Sums_C, computed in place. The second half of the rows is added to the first until one is left.

    Not by `sum`: it adds columns past the last whole vector in another order, and equal attention gets other last bits.
    """
    while (count := values_RC.shape[0]) > 1:
        half = (count + 1) // 2
        values_RC[: count - half] += values_RC[half:]
        values_RC = values_RC[:half]
    return values_RC[0]


def _tiles(
    n_rows: int, key_heads: int, group: int, length: int, size: int, tile_bytes: int, *, rotated: bool
) -> tuple[int, int]:
    """Rows and key heads worked on at once, so that a tile's tensors fit in `tile_bytes`."""
    fixed_bytes = 16 * (length + n_rows)  # the index tensors; scores
    key_bytes = 4 * length * size  # a float32 copy of one key head, where the model runs in half precision
    # One row of one key head: logits and attention; the query in float32, scaled, and reshaped; the mask.
    row_bytes = 4 * group * (2 * length + (4 if rotated else 3) * size) + length  # the query rotated, too
    room_bytes = tile_bytes - fixed_bytes
    row_tile = max(1, min(n_rows, (room_bytes - key_bytes) // row_bytes))
    head_tile = max(1, min(key_heads, room_bytes // (key_bytes + row_tile * row_bytes)))
    if rotated:  # keys, before there are any rows: two products beside one of the factors or the sum
        head_tile = max(1, min(head_tile, room_bytes // (3 * key_bytes)))
    return row_tile, head_tile
