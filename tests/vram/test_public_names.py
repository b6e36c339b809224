from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import vram

STAR: dict[str, object] = {}
exec("from vram import *", STAR)  # noqa: S102 - as a module of a user's has it


def imported(code: str, tmp_path: Path) -> set[str]:
    """Which modules a new Python has imported once it ran `code`, told in its last line."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("name", vram.__all__)
def test_a_public_name_is_there_and_listed(name: str) -> None:
    """As an attribute, by `from vram import *`, and for completion."""
    assert STAR[name] is getattr(vram, name)
    assert name in dir(vram)


def test_names_of_the_package_are_those_that_are_listed() -> None:
    """The table of modules has no name more, and none hides behind a module of the same name."""
    assert sorted(vram._HOMES) == sorted(vram.__all__) == vram.__all__
    assert not {module.name for module in pkgutil.iter_modules(vram.__path__)} & set(vram.__all__)


def test_former_names_are_the_same_objects() -> None:
    """A level is called a ratio now; tests that catch it by the former name still do."""
    assert vram.LevelExceeded is vram.RatioExceeded
    assert vram.Level is vram.Ratio
    assert vram.judge_level is vram.judge_ratio


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    """Also one that Python itself asks for; a module that nobody imported yet is there."""
    with pytest.raises(AttributeError, match="module 'vram' has no attribute 'repaly'"):
        getattr(vram, "repaly")  # noqa: B009 - mypy would find it
    assert not hasattr(vram, "__wrapped__")
    assert vram.errors is importlib.import_module("vram.errors")


@pytest.mark.parametrize("code", ["import vram", "import pytest; pytest.main(['--collect-only', '-p', 'vram.plugin'])"])
def test_importing_is_cheap(code: str, tmp_path: Path) -> None:
    """Whoever has the plugin installed and measures nothing pays for neither torch nor NumPy."""
    modules = imported(code, tmp_path)
    assert "vram" in modules
    assert not {"numpy", "torch"} & modules
