"""How much later tokens look at the image: column sums of attention, without ever building the attention map.

Shape letters: H query heads, G key heads, R rows (queries), N keys, D head size, C scored columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

TILE_BYTES = 32 * 2**20
_BUFFERS = 3  # logits, softmax, and the boolean or rounding temporaries beside them


def column_scores(
    query_HRD: Tensor, key_GND: Tensor, rows: range, columns: range, scaling: float, tile_bytes: int = TILE_BYTES
) -> Tensor:
    """Float32 scores_C: causal attention of `rows` to `columns`, mean over heads, summed over rows.

    Row r of `query_HRD` stands at sequence index `rows[r]` and sees keys 0..rows[r]. Heads and rows are worked through
    in tiles, so that at most `tile_bytes` are used beside the inputs at any length (one row of one key head at least).
    Source: HiMAP (arXiv 2503.13108), modality-aware scores; the original reads them off the materialised map.
    """
    heads, n_rows, _ = query_HRD.shape
    key_heads, length, _ = key_GND.shape
    group = heads // key_heads
    row_bytes = 4 * length * group * _BUFFERS  # of one row, for one key head
    fitting = max(1, tile_bytes // row_bytes)
    row_tile = max(1, min(n_rows, fitting))
    head_tile = max(1, min(key_heads, fitting // row_tile))
    row_index_R = torch.arange(rows.start, rows.stop, device=query_HRD.device)
    key_index_N = torch.arange(length, device=query_HRD.device)
    scores_C = torch.zeros(len(columns), dtype=torch.float32, device=query_HRD.device)
    for first_head in range(0, key_heads, head_tile):
        key = key_GND[first_head : first_head + head_tile].float().unsqueeze(1)
        for first_row in range(0, n_rows, row_tile):
            tile = slice(first_row, first_row + row_tile)
            query = query_HRD[first_head * group : (first_head + head_tile) * group, tile].float()
            query = query.reshape(-1, group, *query.shape[1:]) * scaling
            logits = query @ key.transpose(-1, -2)
            logits.masked_fill_(key_index_N > row_index_R[tile, None], float("-inf"))
            attention = logits.softmax(dim=-1)
            scores_C += attention[..., columns.start : columns.stop].sum(dim=(0, 1, 2))
    return scores_C / heads
