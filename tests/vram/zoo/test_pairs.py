"""Planted regressions of a peak: the difference of two versions names the line, the module and the category first."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests.vram.hiding import hide
from tests.vram.zoo.cases import ZOO, matches
from tests.vram.zoo.pairs import PAIRS, broken_down, read_pair
from vram.summary.breakdown import from_json
from vram.summary.difference import difference


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide what earlier tests left alive, and let the pairs import the zoo's model."""
    monkeypatch.syspath_prepend(str(ZOO))
    gc.collect()
    hide()


def test_there_are_twenty() -> None:
    """As many as are promised."""
    assert len(PAIRS) >= 20


def _on_push(paths: list[Path]) -> set[Path]:
    """The first pair of each category and of each way out, by name; the others run with --full."""
    found: dict[tuple[str, str], Path] = {}
    for path in paths:
        pair = read_pair(path)
        for sort in (("category", pair.category), ("way out", pair.way_out)):
            found.setdefault(sort, path)
    return set(found.values())


ON_PUSH = _on_push(PAIRS)


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[] if path in ON_PUSH else pytest.mark.full) for path in PAIRS]
)
def test_the_difference_names_what_was_planted(path: Path) -> None:
    """All pieces are known, what moved adds up to the byte, and the right line comes first; so it does from what the
    history keeps. No suggestion is wrong: one that leads back to the base saves what the head has more, to the byte."""
    pair = read_pair(path)
    base, base_ways_out = broken_down(pair.base, pair.name)
    gc.collect()
    head, head_ways_out = broken_down(pair.head, pair.name)
    assert (base.untraced_bytes, head.untraced_bytes) == (0, 0)
    kept = [from_json(one.compact()) for one in (base, head)]
    assert kept[0] is not None
    assert kept[1] is not None
    for found in (difference(base, head), difference(kept[0], kept[1])):
        assert found.more_bytes == head.peak_bytes - base.peak_bytes > 0
        assert sum(one.more_bytes for one in found.moved) == found.more_bytes
        first = found.moved[0]
        assert first.more_bytes > 0
        assert matches(pair.line, first.piece.line), found.lines(12)
        assert (first.piece.category, True) == (pair.category, matches(pair.module, first.piece.module)), found.lines(
            12
        )
        assert len(found.lines()) <= 6
    assert [one["pattern"] for one in base_ways_out] == [pair.base_way_out] * bool(pair.base_way_out)
    assert [one["pattern"] for one in head_ways_out] == [pair.way_out] * bool(pair.way_out)
    if pair.way_out:
        assert head_ways_out[0]["saves_bytes"] == head.peak_bytes - base.peak_bytes
