"""Peaks in pieces, and the difference of two: every byte is in it, whatever is cut, packed or moved."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from vram.summary.breakdown import UNTRACED, Breakdown, Piece, folded, from_json, sums_text
from vram.summary.difference import difference

CAT = Piece(4096, 2, "model.py:7 Block.forward", "aten.cat", "float32", "[1, 512]", "layers.*", "activations")
MAPS = Piece(
    8192, 1, "model.py:9 Block.forward", "aten._softmax", "float16", "[4, 32, 32]", "layers.*", "attention maps"
)
WEIGHTS = Piece(100, 1, dtype="float32", shape="[25]", module="head", category="weights")
PEAK = Breakdown(3, 12_400, (MAPS, CAT, WEIGHTS), untraced_bytes=12, untraced="workspaces")


def peak(*pieces: Piece, untraced: int = 0) -> Breakdown:
    """A peak of these pieces."""
    return Breakdown(0, sum(piece.n_bytes for piece in pieces) + untraced, pieces, untraced, "workspaces")


def many(count: int) -> Breakdown:
    """A peak of as many lines, in two categories, with long names."""
    return peak(
        *(
            replace(
                CAT,
                n_bytes=10_000 - number,
                line=f"package/with/a/long/path/modeling_{number}.py:{number} AVeryLongClass{number}.forward",
                module=f"model.language_model.layers.*.part_{number}",
                category=("activations", "logits")[number % 2],
            )
            for number in range(count)
        ),
        untraced=5,
    )


def test_sums() -> None:
    """Sums by category and by module, most first; what was there before is no module's work."""
    assert PEAK.by_category == {"attention maps": 8192, "activations": 4096, "weights": 100, UNTRACED: 12}
    assert PEAK.by_module == {"layers.*": 12_288}
    assert sums_text(PEAK.by_category, 2) == "attention maps 8.00 KiB, activations 4.00 KiB, 2 more 112 B"


def test_words_of_a_piece() -> None:
    """The line, what was made there, how often, in which module, and what it is."""
    assert CAT.text == "model.py:7 Block.forward: aten.cat float32 [1, 512] in 2 x layers.* (activations)"
    assert WEIGHTS.text == "before the sample: float32 [25] in head (weights)"
    assert replace(WEIGHTS, module="", count=3).text == "before the sample: float32 [25] (3 x) (weights)"
    assert PEAK.whole[-1].text == "not traced"


@pytest.mark.parametrize("one", [PEAK, many(500), peak()], ids=["small", "large", "nothing"])
def test_what_is_kept_adds_up(one: Breakdown) -> None:
    """A report and the history give back the peak, the sums of each category and the largest pieces; the history in at
    most 3 KB."""
    packed = one.compact()
    assert len(json.dumps(packed, separators=(",", ":"))) <= 3000
    for data in (one.to_json(), packed):
        again = from_json(json.loads(json.dumps(data)))
        assert again is not None
        assert (again.peak_bytes, again.by_category, again.sample) == (one.peak_bytes, one.by_category, one.sample)
        assert sum(piece.n_bytes for piece in again.whole) == one.peak_bytes
        assert again.pieces[:5] == one.pieces[:5]


def test_smaller_pieces_are_counted_once() -> None:
    """Folded twice, as from a report into the history: the count is that of the pieces."""
    once = folded(many(50).pieces, 20)
    twice = folded(once, 10)
    assert sum(piece.smaller for piece in once) == 30
    assert sum(piece.smaller for piece in twice) == 40
    assert sum(piece.n_bytes for piece in twice) == many(50).peak_bytes - 5


@pytest.mark.parametrize(
    "damage",
    [
        {"peak_bytes": 1},
        {"pieces": ["1 2"]},
        {"pieces": ["8192 1 0 1 2 3 4 -1 0"]},
        {"pieces": "none"},
        {"texts": []},
        {"untraced_bytes": 1.5},
        {"sample": True},
    ],
)
def test_damage_is_refused(damage: dict[str, object]) -> None:
    """Anything that does not add up, or is of another type; a later version is left alone."""
    with pytest.raises(ValueError, match="not a breakdown"):
        from_json({**PEAK.compact(), **damage})
    assert from_json({**PEAK.compact(), "version": 2}) is None


def test_a_line_that_moved_is_the_same_piece() -> None:
    """Only what is larger is a change: by shape, by dtype, by count, and where the module has another name."""
    moved = replace(CAT, line="model.py:70 Block.forward")
    assert not [one for one in difference(peak(CAT), peak(moved)).moved if one.word != "same"]
    larger = replace(moved, n_bytes=8192, shape="[1, 1024]")
    assert difference(peak(CAT, MAPS), peak(MAPS, larger)).lines() == [
        "+4.00 KiB at the peak (sample 0): activations +4.00 KiB",
        "  +4.00 KiB grew: model.py:70 Block.forward: aten.cat float32 [1, 1024] in 2 x layers.* (activations), "
        "[1, 512] before",
    ]
    cast = replace(MAPS, n_bytes=16_384, dtype="float32", module="model.layers.*")
    (one,) = difference(peak(MAPS), peak(cast)).moved
    assert (one.word, one.more_bytes) == ("grew", 8192)
    assert one.text.endswith("(attention maps), float16 before")


def test_what_came_and_went() -> None:
    """The sum is the difference to the byte, what is not traced in it; most first, and no more lines than asked for."""
    base, head = peak(CAT, WEIGHTS, untraced=12), many(30)
    found = difference(base, head)
    assert sum(one.more_bytes for one in found.moved) == head.peak_bytes - base.peak_bytes == found.more_bytes
    assert sum(found.by_category.values()) == sum(found.by_module.values()) == found.more_bytes
    assert {one.word for one in found.moved} == {"came", "went", "shrank"}
    sizes = [abs(one.more_bytes) for one in found.moved]
    assert sizes == sorted(sizes, reverse=True)
    lines = found.lines()
    assert len(lines) == 6
    assert lines[-1].startswith("  and +")
    assert lines[-1].endswith(" in 29 more pieces")
    assert sum(piece["more_bytes"] for piece in found.to_json()["pieces"]) == found.more_bytes


def test_alike_pieces_find_their_own() -> None:
    """Two pieces of one line: the one of equal shape is the same, the other grew."""
    other = replace(CAT, shape="[1, 64]", n_bytes=512)
    grown = replace(other, shape="[1, 80]", n_bytes=640)
    (first, second) = difference(peak(CAT, other), peak(grown, CAT)).moved
    assert (first.base, first.head, second.word) == (other, grown, "same")


def test_an_improvement_reads_alike() -> None:
    """Less is said as more is."""
    assert difference(peak(CAT, MAPS), peak(CAT)).lines() == [
        "-8.00 KiB at the peak (sample 0): attention maps -8.00 KiB",
        "  -8.00 KiB went: model.py:9 Block.forward: aten._softmax float16 [4, 32, 32] in layers.* (attention maps)",
    ]


RENAMED = replace(CAT, line="model.py:9 Layer.forward", module="blocks.*")


def test_what_was_renamed_did_not_move() -> None:
    """A module, or its class with it, that has another name alone: no piece came or went, and the names are said."""
    names = "  renamed: layers.* is blocks.* now, head is top now"
    for one in (RENAMED, replace(CAT, module="blocks.*")):
        found = difference(peak(CAT, WEIGHTS), peak(one, replace(WEIGHTS, module="top")))
        assert {moved.word for moved in found.moved} == {"same"}
        assert (found.by_module, found.by_category) == ({}, {})
        assert found.lines() == ["0 B at the peak (sample 0)", names]
        assert found.to_json()["renamed"] == {"layers.*": "blocks.*", "head": "top"}
    assert difference(peak(CAT), peak(replace(CAT, line=RENAMED.line))).lines() == ["0 B at the peak (sample 0)"]


def test_what_was_renamed_and_grew() -> None:
    """Its growth alone is the module's, and both sides stand under the name in the head."""
    found = difference(peak(CAT), peak(replace(CAT, module="blocks.*", n_bytes=4196)))
    assert found.by_module == {"blocks.*": 100}
    assert found.beside(lambda piece: piece.module) == {"blocks.*": (4096, 4196)}
    assert found.lines()[-1] == "  renamed: layers.* is blocks.* now"
    assert difference(peak(CAT), peak(replace(CAT, module="blocks.*", n_bytes=4196))).lines(2) == found.lines()[:2]


def test_a_piece_that_moved_between_modules_is_not_renamed() -> None:
    """Where the base's module is still there, or the head's was before, or one became two: bytes are less here and more
    there."""
    here, there = replace(CAT, op="aten.add"), replace(CAT, module="blocks.*")
    for base, head in (((CAT, here), (there, here)), ((CAT, replace(here, module="blocks.*")), (there,))):
        found = difference(peak(*base), peak(*head))
        assert found.renamed == {}
        assert found.by_module["layers.*"] < 0
        assert sum(found.by_module.values()) == found.more_bytes
    apart = (replace(CAT, module="a"), replace(here, module="b"))
    for base, head in (((CAT, here), apart), (apart, (CAT, here))):
        assert difference(peak(*base), peak(*head)).renamed == {}


@pytest.mark.parametrize(
    ("base", "head"),
    [
        ((CAT, replace(CAT, line="model.py:20 Head.forward")), (RENAMED,)),
        ((CAT,), (RENAMED, replace(RENAMED, line="model.py:20 Head.forward"))),
        ((CAT,), (replace(RENAMED, n_bytes=4097),)),
        ((CAT,), (replace(RENAMED, line="other.py:9 Layer.forward"),)),
        ((CAT,), (replace(RENAMED, line="model.py:9 Layer.attend"),)),
        ((CAT,), (replace(RENAMED, category="logits"),)),
        ((CAT,), (replace(RENAMED, count=1),)),
    ],
    ids=["two before", "two now", "bytes", "file", "function", "category", "count"],
)
def test_what_only_looks_renamed(base: tuple[Piece, ...], head: tuple[Piece, ...]) -> None:
    """A class of another name whose piece has more than one partner, or differs in anything else: it came and went."""
    found = difference(peak(*base), peak(*head))
    assert "same" not in {moved.word for moved in found.moved}
    assert found.renamed == {}
    assert sum(found.by_module.values()) == found.more_bytes
