"""For the tests of vram."""

from __future__ import annotations

from importlib import import_module
from pkgutil import walk_packages

import hypothesis.strategies  # noqa: F401 - see below
import pytest
import torch

import vram

# An in-process inner pytest unloads what it imported: what each of them would import anew, for seconds, is here.
for module in walk_packages(vram.__path__, "vram."):
    if not module.name.endswith("__main__"):
        import_module(module.name)


@pytest.fixture(scope="session", autouse=True)
def _torch_is_complete() -> None:
    """Let torch import what it imports late. An in-process inner pytest unloads what came with it, and torch cannot
    be loaded twice."""
    with vram.measure("cpu"):
        torch.zeros(1)
