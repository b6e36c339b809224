"""Published figures of real cards."""

from __future__ import annotations

import pytest

from tests.vram.simulated.published import ROWS, Published

EQUAL = [row for row in ROWS if not row.why]


@pytest.mark.parametrize("row", EQUAL, ids=[row.what for row in EQUAL])
def test_the_simulation_says_what_others_measured_on_a_card(row: Published) -> None:
    """To the digit that they printed; rows with a difference that is explained are in the docs."""
    assert row.simulated() == row.figure
