"""For the tests of the zoo."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

import tests.vram.zoo.tiny  # noqa: F401 - an inner run unloads what it imported: transformers must be here before


@pytest.fixture(autouse=True)
def _small_heap() -> Iterator[None]:
    """The inner runs collect all the time: this process's own objects need not be looked through each time."""
    gc.freeze()
    yield
    gc.unfreeze()
