"""Attention column sums without the attention map: same numbers, bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from himap.scoring import TILE_BYTES, column_scores


def materialised(query_HRD: Tensor, key_GND: Tensor, rows: range, columns: range, scaling: float) -> Tensor:
    """The same from the whole attention map, in float64."""
    query, key = query_HRD.double(), key_GND.double()
    key = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    visible = torch.arange(key.shape[1]) <= torch.tensor(list(rows))[:, None]
    attention = (query @ key.mT * scaling).masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return attention.mean(dim=0).sum(dim=0)[columns.start : columns.stop]


def random_case(key_heads: int, group: int, length: int, rows: range, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    query = torch.randn(key_heads * group, len(rows), size, generator=generator) * 2
    return query, torch.randn(key_heads, length, size, generator=generator)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_equals_the_materialised_map(data: st.DataObject) -> None:
    """For any heads, grouped or not, any rows and columns, and any tile: the sums of the attention map."""
    key_heads, group = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    length, size = data.draw(st.integers(1, 40)), data.draw(st.sampled_from([2, 8, 16]))
    start = data.draw(st.integers(0, length - 1))
    rows = range(start, data.draw(st.integers(start + 1, length)))
    start = data.draw(st.integers(0, length - 1))
    columns = range(start, data.draw(st.integers(start, length)))
    tile_bytes = data.draw(st.sampled_from([1, 4_000, 20_000, TILE_BYTES]))
    query, key = random_case(key_heads, group, length, rows, size)

    scores = column_scores(query, key, rows, columns, scaling=size**-0.5, tile_bytes=tile_bytes)

    assert scores.dtype == torch.float32
    expected = materialised(query, key, rows, columns, scaling=size**-0.5)
    torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=1e-5)


def test_one_row_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no room at all, each product is of one row of one key head, and the sums are the same."""
    rows = range(3, 11)
    query, key = random_case(2, 2, 11, rows, 8)
    shapes: list[tuple[int, ...]] = []
    product = Tensor.__matmul__
    monkeypatch.setattr(Tensor, "__matmul__", lambda a, b: shapes.append(tuple(a.shape)) or product(a, b))

    scores = column_scores(query, key, rows, range(1, 5), 0.3, tile_bytes=0)

    assert shapes == [(1, 2, 8)] * (2 * len(rows))
    torch.testing.assert_close(scores, column_scores(query, key, rows, range(1, 5), 0.3))


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside were alive at once, counted by storage."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)
        }
        out = func(*args, **(kwargs or {}))
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in given:
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._alive.values()))
        return out


@pytest.mark.share(5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("heads", "key_heads"), [(8, 8), (8, 2)])
@pytest.mark.parametrize("rows", [range(1480, 1500), range(35, 611), range(900, 1500)], ids=["text", "image", "late"])
@pytest.mark.parametrize("tile_bytes", [640 * 2**10, 2 * 2**20, 8 * 2**20])
def test_memory_stays_within_the_tile(
    dtype: torch.dtype, heads: int, key_heads: int, rows: range, tile_bytes: int
) -> None:
    """Beside its inputs it never holds more than `tile_bytes`: half precision, grouped heads and all."""
    query = torch.randn(heads, len(rows), 64, dtype=dtype)
    key = torch.randn(key_heads, 1500, 64, dtype=dtype)

    with PeakBytes() as measured:
        column_scores(query, key, rows, range(35, 611), 0.125, tile_bytes)

    assert tile_bytes / 8 < measured.peak_bytes <= tile_bytes


@pytest.mark.share(5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("heads", "key_heads"), [(8, 8), (8, 2)])
@pytest.mark.parametrize("rows", [range(1480, 1500), range(35, 611), range(900, 1500)], ids=["text", "image", "late"])
@pytest.mark.parametrize("tile_bytes", [2 * 2**20, 8 * 2**20])
def test_positions_are_given_within_the_tile(
    dtype: torch.dtype, heads: int, key_heads: int, rows: range, tile_bytes: int
) -> None:
    """Queries and keys that get their positions tile by tile score as if they came with them, in no more memory."""
    query = torch.randn(heads, len(rows), 64, dtype=dtype)
    key = torch.randn(key_heads, 1500, 64, dtype=dtype)
    cos, sin = torch.rand(2, 1500, 64).to(dtype)

    def rotate(vectors: Tensor, at: range) -> Tensor:
        return vectors * cos[at.start : at.stop] + vectors.roll(32, dims=-1) * sin[at.start : at.stop]

    with PeakBytes() as measured:
        scores = column_scores(query, key, rows, range(35, 611), 0.125, tile_bytes, rotate)

    assert measured.peak_bytes <= tile_bytes
    expected = column_scores(rotate(query, rows), rotate(key, range(1500)), rows, range(35, 611), 0.125)
    torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("count", [5, 7, 33, 100])
@pytest.mark.parametrize("by", [1, 8, 17])
def test_equal_attention_scores_equally_to_the_last_bit(count: int, by: int) -> None:
    """Where every key is looked at alike no column is ahead, wherever it stands: ties are ties, and go by index."""
    columns, rows = range(1, 1 + count), range(1 + count, 1 + count + by)
    query, key = random_case(2, 2, rows.stop, rows, 8)

    scores = column_scores(query, torch.zeros_like(key), rows, columns, 0.3)

    assert scores.unique().numel() == 1


def test_autocast_changes_nothing() -> None:
    """Scores are float32 where autocast would make every product half precision."""
    query, key = random_case(2, 2, 40, range(30, 40), 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = column_scores(query, key, range(30, 40), range(3, 20), 0.3)

    assert torch.equal(scores, column_scores(query, key, range(30, 40), range(3, 20), 0.3))


def test_the_meter_sees_the_whole_map() -> None:
    """The measure above is no empty one: the materialised map of the same case costs 8 * N * N * 4 bytes."""
    with PeakBytes() as measured:
        (torch.randn(8, 500, 64) @ torch.randn(8, 64, 500)).softmax(dim=-1)

    assert measured.peak_bytes >= 2 * 8 * 500 * 500 * 4
