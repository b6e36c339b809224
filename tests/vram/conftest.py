"""For the tests of vram."""

from __future__ import annotations

import pytest
import torch

import vram


@pytest.fixture(scope="session", autouse=True)
def _torch_is_complete() -> None:
    """Let torch import what it imports late. An in-process inner pytest unloads what came with it, and torch cannot
    be loaded twice."""
    with vram.measure("cpu"):
        torch.zeros(1)
