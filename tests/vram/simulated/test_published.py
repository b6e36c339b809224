"""Published figures of real cards."""

from __future__ import annotations

import pytest

from tests.vram.simulated.published import ROWS, Published

EQUAL = {row.what: row for row in ROWS if not row.why}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run rows that agree; the slow ones with --full."""
    everything = metafunc.config.getoption("--full", default=False)
    rows = {what: row for what, row in EQUAL.items() if everything or not row.slow}
    metafunc.parametrize("row", rows.values(), ids=rows)


def test_the_simulation_says_what_others_measured_on_a_card(row: Published) -> None:
    """To the digit that they printed; rows with a difference that is explained are in the docs."""
    assert row.simulated() == row.figure
