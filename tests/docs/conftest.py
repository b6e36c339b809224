"""Projects that pages begin with are run by their pages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import IMPORTED
from tests.forking import commands

collect_ignore = ["projects"]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """As that of all tests, with what some of these import besides."""
    with commands(tmp_path_factory.mktemp("programs"), *IMPORTED, "torch.onnx") as scripts:
        yield scripts
