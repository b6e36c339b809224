"""The end of the longest answer that fits: whether it has room without a play."""

from __future__ import annotations

import pytest

from llava.forecast import _ends_anyway
from tests.vram.simulated.test_bounds import recorded
from vram.cards import Card
from vram.forecasting.playing import CardPlayer

MIB = 2**20


def test_an_end_has_room_where_each_request_could_have_a_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    """26 MiB and 2 MiB of segments beside what is reserved; not with less, nor where a setting makes other rules."""
    card, end = Card("small", 1000 * MIB, (8, 0)), recorded((25 * MIB, False), (512, True))
    room_bytes = card.total_bytes - card.context_bytes
    assert _ends_anyway(CardPlayer(card, recorded((MIB, True))), end, room_bytes - 28 * MIB)
    assert not _ends_anyway(CardPlayer(card, recorded((MIB, True))), end, room_bytes - 28 * MIB + 1)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:32")
    assert not _ends_anyway(CardPlayer(card, recorded((MIB, True))), end, room_bytes - 28 * MIB)
