"""For the tests of vram."""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import itertools
import logging
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType, SimpleNamespace
from typing import Any

import hypothesis
import hypothesis.strategies  # see below
import pytest
import torch
import torch._dynamo
from _pytest.fixtures import FixtureManager

import vram
from tests.conftest import IMPORTED, seed
from tests.forking import commands
from tests.vram.hiding import hide, show
from vram.torch_hooks.frozen import _MOST_IMMORTAL

# An in-process inner pytest unloads what it imported: what each of them would import anew, for seconds, is here.
_OURS = [each.name for each in walk_packages(vram.__path__, "vram.") if not each.name.endswith("__main__")]
for name in _OURS:
    import_module(name)


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """As that of all tests, from a process that has imported vram too: each would rewrite its modules for pytest."""
    with commands(tmp_path_factory.mktemp("programs"), *IMPORTED, "vram", *_OURS) as scripts:
        yield scripts


def pytest_configure(config: pytest.Config) -> None:
    """Tests that draw all they are given from hypothesis, and say no number, draw a sixth of it without --full."""
    hypothesis.settings.register_profile("vram", max_examples=100 if config.getoption("--full", default=False) else 16)
    hypothesis.settings.load_profile("vram")


@pytest.fixture(scope="session", autouse=True)
def _torch_is_complete() -> None:
    """Let torch import what it imports late. An in-process inner pytest unloads what came with it, and torch cannot
    be loaded twice."""
    with vram.measure("cpu"):
        torch.zeros(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run what imports a model library last: all other tests search through 200,000 objects less."""
    items.sort(key=_imports_a_model_library)


def _imports_a_model_library(item: pytest.Item) -> bool:
    return getattr(_case(item), "of_a_model", False) or item.path.name == "test_published.py"


def _case(item: pytest.Item) -> Any:
    """The case of the zoo that a test runs, if any."""
    return getattr(item, "callspec", SimpleNamespace(params={})).params.get("case")


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test draws the same random numbers. The state to return to is no tensor: it would be alive in what inner
    runs measure."""
    state = bytearray(torch.get_rng_state().numpy())
    seed()
    yield
    torch.set_rng_state(torch.frombuffer(state, dtype=torch.uint8))


@pytest.fixture(scope="package", autouse=True)
def _loggers_propagate() -> Iterator[None]:
    """pytest catches what is logged at the root, and three times a test at each logger that keeps it to itself, of
    which torch has fifty."""
    loggers = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        for logger in loggers:
            monkeypatch.setattr(logger, "propagate", True)
        yield


@pytest.fixture(scope="module", autouse=True)
def _small_heap(request: pytest.FixtureRequest) -> None:
    """Hide from the collector all but the test's own module: replays collect all the time, and so do inner runs."""
    gc.collect()
    _hide_all_but(request.module)


def _hide_all_but(module: ModuleType) -> None:
    hide()
    _see(vars(module), *vars(module).values())


def _see(*objects: Any) -> None:
    """Show these, and what the classes among them consist of."""
    parts = (gc.get_referents(each) for each in objects if type(each) is type)
    for obj in (*objects, *itertools.chain.from_iterable(parts)):
        if gc.is_tracked(obj):
            for function in (ctypes.pythonapi.PyObject_GC_UnTrack, ctypes.pythonapi.PyObject_GC_Track):
                function.restype = None
                function(ctypes.py_object(obj))


@pytest.fixture(scope="package", autouse=True)
def _all_is_shown_afterwards() -> Iterator[None]:
    """Other folders' tests in the same process find nothing hidden."""
    yield
    show()


# Cases of the zoo whose holder is an object of Python's own.
_KEPT_ELSEWHERE = ("context_variable", "finalizer_arguments")


@pytest.fixture(autouse=True)
def _holders_are_shown(request: pytest.FixtureRequest) -> None:
    if getattr(_case(request.node), "name", "") in _KEPT_ELSEWHERE:
        request.getfixturevalue("whole_heap")


@pytest.fixture(autouse=True)
def _small_inner_heap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner runs replay too, and collect after each sample: all that is there before them is hidden. pytest-asyncio,
    which warns of a setting of its own, is loaded where it is named."""
    whole = "whole_heap" in request.fixturenames or getattr(_case(request.node), "name", "") in _KEPT_ELSEWHERE
    if "pytester" in request.fixturenames and not whole:
        pytester = request.getfixturevalue("pytester")
        run = pytester.inline_run

        def hidden(*arguments: Any, **options: Any) -> Any:
            gc.collect()
            _hide_all_but(request.module)
            return run("-p", "no:asyncio", *arguments, **options)

        monkeypatch.setattr(pytester, "inline_run", hidden)


class _ReadOnce:
    """A distribution whose files are read at the first look."""

    def __init__(self, distribution: importlib.metadata.Distribution) -> None:
        self._distribution = distribution

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._distribution, name)
        setattr(self, name, value)
        return value


@pytest.fixture(scope="package", autouse=True)
def _distributions_are_read_once() -> Iterator[None]:
    """Each in-process inner run looks for plugins in all that is installed, and would parse it three times."""
    found: dict[tuple[str, ...], list[_ReadOnce]] = {}
    find = importlib.metadata.distributions

    def distributions(**context: Any) -> Iterable[Any]:
        if context:
            return find(**context)
        places = tuple(sys.path)
        if places not in found:
            found[places] = [_ReadOnce(each) for each in find()]
        return found[places]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(importlib.metadata, "distributions", distributions)
        yield


@pytest.fixture(scope="package", autouse=True)
def _no_warning_of_hidden_fixtures() -> Iterator[None]:
    """Newer releases of pytest look at every name of every plugin for a fixture that a decorator hides, which takes a
    quarter of an in-process inner run. None is hidden here."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(FixtureManager, "_check_for_wrapped_fixture", lambda *_, **__: None, raising=False)
        yield


@pytest.fixture(autouse=True)
def _few_plugins(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner runs do not load what none of them uses: hypothesis is imported for 2 s at the end of each process."""
    if "pytester" in request.fixturenames:
        request.getfixturevalue("pytester")  # which drops the variable
        monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest -p no:anyio -p no:asyncio -p no:platformdirs")


@pytest.fixture
def whole_heap(request: pytest.FixtureRequest) -> Iterator[None]:
    """Nothing is hidden from the collector."""
    show()
    yield
    _hide_all_but(request.module)


@pytest.fixture
def others_names(request: pytest.FixtureRequest) -> Iterator[None]:
    """Modules that were imported, and a class of PyTorch's, are in the collector's sight."""
    modules = [module for module in sys.modules.values() if type(module) is ModuleType]
    _see(torch.nn.Linear, *modules, *map(vars, modules))
    yield
    _hide_all_but(request.module)


@pytest.fixture
def much_to_freeze() -> list[list[object]]:
    """So many objects that who freezes them is noticed: Python has a few frozen by itself."""
    return [[] for _ in range(2 * _MOST_IMMORTAL)]
