"""Decoys: memory moves, and nothing is wrong."""

from __future__ import annotations

import pytest

from tests.vram.zoo.cases import Case
from tests.vram.zoo.judging import wrong
from tests.vram.zoo.running import params, run


@pytest.mark.parametrize("case", params("decoys"))
def test_a_decoy_does_not_alarm(pytester: pytest.Pytester, case: Case) -> None:
    """The case's test passes, with the verdict that the case says."""
    assert wrong(case, run(case, pytester)) == []
