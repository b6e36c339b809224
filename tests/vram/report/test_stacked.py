"""A timeline as it is drawn: places by hand, what is alive throughout below the drawing, ticks, the base's outline."""

from __future__ import annotations

import re
from dataclasses import replace

from vram.report.stacked import Stack, stacked
from vram.summary.timeline import Made, Timeline

KIB = 1024
ONE = Timeline(
    sample=2,
    operations=4,
    merged=1,
    at=(0, 1, 2, 3, 4),
    bytes={"weights": (KIB,) * 5, "activations": (0, KIB, 3 * KIB, KIB, 0), "mine": (0, 0, KIB, KIB, 0)},
    least={"weights": KIB, "activations": 0, "mine": 0},
    largest={"weights": (0,) * 5, "activations": (-1, 1, 1, 1, -1), "mine": (-1, -1, 2, 2, -1)},
    largest_bytes={"weights": (KIB,) * 5, "activations": (0, KIB, 3 * KIB, KIB, 0), "mine": (0, 0, KIB, KIB, 0)},
    began=(-1, 1, 2, -1, -1),
    ended=(-1, -1, -1, 1, 2),
    made=(Made("before the sample"), Made("a.py:1 f: aten.cat", ("a.py:1 f", "b.py:2 g")), Made("a.py:3 f: aten.add")),
    ticks=((1, "token 0"), (3, "token 1")),
)


def heights(drawn: Stack, name: str) -> list[int]:
    """Upper edges of a band in bytes above the bottom of the drawing, from its path."""
    path = next(band.path for band in drawn.bands if band.name == name)
    places = re.findall(r"(?:M0 100L[\d.]+ |V)([\d.]+)", path)[:-1]
    return [round((100 - float(place)) / 100 * drawn.full_bytes / KIB * 10) * KIB // 10 for place in places]


def test_bands_stand_upon_one_another() -> None:
    """The upmost is drawn first and is the sum of all; the first in the list is at the top."""
    drawn = stacked(ONE)
    assert [band.name for band in drawn.bands] == ["mine", "activations", "weights"]
    assert heights(drawn, "weights") == [KIB]
    assert heights(drawn, "activations") == [KIB, 2 * KIB, 4 * KIB, 2 * KIB, KIB]
    assert heights(drawn, "mine") == [KIB, 2 * KIB, 5 * KIB, 3 * KIB, KIB]
    assert [(band.text, band.below_bytes) for band in drawn.bands] == [
        ("mine 1.00 KiB", 0),
        ("activations 3.00 KiB", 0),
        ("weights 1.00 KiB", 0),
    ]
    assert (drawn.peak.at, drawn.peak.text) == (50.0, "peak 5.00 KiB")
    assert drawn.label.startswith("peak 5.00 KiB after operation 2 of 4: mine 1.00 KiB, activations 3.00 KiB, ")
    assert [(tick.at, tick.text) for tick in drawn.ticks] == [(25.0, "token 0"), (75.0, "token 1")]
    assert drawn.bounds == [25.0, 75.0]
    assert drawn.notes == ["4 allocations and frees", "ticks from token 0 to token 1"]


def test_what_is_alive_throughout_is_below_the_drawing() -> None:
    """Weights of 1 MiB would leave nothing of a peak of 4 KiB to see: they are not drawn, and that is said."""
    large = replace(ONE, bytes={**ONE.bytes, "weights": (2**20,) * 5}, least={**ONE.least, "weights": 2**20})
    drawn = stacked(large)
    assert heights(drawn, "mine") == [0, KIB, 4 * KIB, 2 * KIB, 0]
    assert [band.below_bytes for band in drawn.bands] == [0, 0, 2**20]
    assert "levels are above what is alive throughout: weights 1.00 MiB" in drawn.notes
    assert drawn.peak.text == "peak 1.00 MiB"


def test_the_outline_of_the_base() -> None:
    """Its total, above the same bottom, on one scale with the sample; without one, why."""
    drawn = stacked(ONE, [(0, KIB), (500, 10 * KIB)], "run 0001")
    full = drawn.full_bytes
    assert full > 10 * KIB
    assert drawn.base == f"M0 {round(100 - 100 * KIB / full, 2):g}H50V{round(100 - 100 * 10 * KIB / full, 2):g}H100"
    assert drawn.base_text == "base (run 0001), total"
    none = stacked(ONE, why_no_base="no outline of the base (run 0001) is kept")
    assert (none.base, none.base_text, none.notes[-1]) == ("", "", "no outline of the base (run 0001) is kept")


def test_many_ticks_have_few_labels() -> None:
    """A line for each, eight labels at most, and how many were left out before."""
    many = replace(ONE, operations=100, ticks=tuple((at, f"token {at}") for at in range(40)), ticks_left_out=60)
    drawn = stacked(many)
    assert (len(drawn.bounds), len(drawn.ticks)) == (40, 8)
    assert drawn.notes[-1] == "ticks from token 0 to token 39, 60 between them left out"
