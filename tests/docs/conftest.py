"""Projects that pages begin with are run by their pages; simulations need torch's compilers, which come with a fork."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import IMPORTED
from tests.forking import commands

collect_ignore = ["projects"]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """As that of all tests, with what takes each process that simulates 2 s."""
    with commands(tmp_path_factory.mktemp("programs"), *IMPORTED, "torch._dynamo", "torch.onnx") as scripts:
        yield scripts
