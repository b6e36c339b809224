"""Raised peaks: every one is over its limit, and says by how much."""

from __future__ import annotations

import pytest

from tests.vram.zoo.cases import Case
from tests.vram.zoo.judging import wrong
from tests.vram.zoo.running import params, run


@pytest.mark.parametrize("case", params("peaks"))
def test_a_raised_peak_is_found(pytester: pytest.Pytester, case: Case) -> None:
    """The error and its words are as the case says."""
    assert wrong(case, run(case, pytester)) == []
