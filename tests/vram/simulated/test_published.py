"""Published figures of real cards."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.vram.simulated.published import ROWS, Published

PAGE = (Path(__file__).parents[3] / "docs" / "simulated.md").read_text(encoding="utf-8")
SUITE = (Path(__file__).parents[3] / "docs" / "memory-suite.md").read_text(encoding="utf-8")
FEWEST = 30


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every third row that is not slow; all with --full."""
    if "row" in metafunc.fixturenames:
        everything = metafunc.config.getoption("--full", default=False)
        rows = ROWS if everything else [row for row in ROWS if not row.slow][::3]
        metafunc.parametrize("row", rows, ids=[f"{row.source} {row.what}" for row in rows])


def test_the_simulation_says_what_others_measured_on_a_card(row: Published) -> None:
    """To the digit that they printed; where it does not, what the table says, with the cause."""
    simulated = row.simulated()

    assert (simulated == row.figure) != bool(row.why)
    assert f"\n{row.row(simulated)}\n" in PAGE


def test_the_page_has_the_rows_in_their_order() -> None:
    """And says how many there are, and how many of them differ."""
    table = re.findall(r"^\| \[[^]]+\]\(([^)]+)\) \| [^|]* \| ([^|]*) \|", PAGE, re.MULTILINE)

    assert table == [(row.source, row.what) for row in ROWS]
    equal = sum(not row.why for row in ROWS)
    assert f"{len(ROWS)} cases, of which {equal} are equal" in PAGE
    assert f"{len(ROWS)} cases that others measured on GPUs and published, training among them; {equal} agree" in SUITE
    assert max(Counter(table).values()) == 1
    assert len(ROWS) >= FEWEST
