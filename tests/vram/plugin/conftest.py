"""For the tests of the plugin: each starts a real pytest inside."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> Iterator[None]:
    """Freeze what earlier tests left alive: each replay inside would look through all of it, for seconds."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
