"""For the tests of vram."""

from __future__ import annotations

import hypothesis.strategies  # noqa: F401 - see below
import pytest
import torch

import vram
import vram.explanation.growth
import vram.plugin.body
import vram.session

# An in-process inner pytest unloads what it imported: what each of them would import anew, for seconds, stands above.


@pytest.fixture(scope="session", autouse=True)
def _torch_is_complete() -> None:
    """Let torch import what it imports late. An in-process inner pytest unloads what came with it, and torch cannot
    be loaded twice."""
    with vram.measure("cpu"):
        torch.zeros(1)
