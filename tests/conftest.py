"""For every test of this project."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.forking import commands

# Modules that a run of the plugin, a worker of pytest-xdist and a simulation import; no test looks at how they are
# imported.
_MODULES = ("torch", "torch._dynamo", "numpy", "jinja2", "pytest", "execnet")
IMPORTED = [name for name in _MODULES if find_spec(name.partition(".")[0])]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of commands that are forked from a process that has imported torch, for PATH."""
    with commands(tmp_path_factory.mktemp("programs"), *IMPORTED) as scripts:
        yield scripts


@pytest.fixture
def forked(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sys.executable` is one of them: a process of its own, or a worker of pytest-xdist, takes 6 s less."""
    monkeypatch.setattr(sys, "executable", str(programs / "python"))


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An inner pytest is none of the job's, the worker's or the terminal's that runs these tests."""
    of_ci = ("CI", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE", "PYTEST_XDIST_WORKER")
    of_terminals = ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "PY_COLORS")
    for name in of_ci + of_terminals:
        monkeypatch.delenv(name, raising=False)


def seed() -> None:
    """Seed the generator of the CPU, and those of a GPU where torch has any: for those that may come it would note the
    whole stack each time."""
    torch.manual_seed(0) if torch.version.cuda else torch.default_generator.manual_seed(0)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test draws the same random numbers, whichever ran before it."""
    with torch.random.fork_rng(devices=[]):
        seed()
        yield
