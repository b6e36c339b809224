"""Leaks: every one is found, and named by its line and its holder."""

from __future__ import annotations

import pytest

from tests.vram.zoo.cases import Case
from tests.vram.zoo.judging import wrong
from tests.vram.zoo.running import params, run


@pytest.mark.parametrize("case", params("leaks"))
def test_a_leak_is_found_and_named(pytester: pytest.Pytester, case: Case) -> None:
    """The verdict, the line that allocates and who holds it are as the case says."""
    assert wrong(case, run(case, pytester)) == []
