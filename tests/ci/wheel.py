"""This project's wheel, built from the checkout without a network and put in a folder of its own."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in", "himap", "llava", "vram")


def build_wheel(folder: Path) -> Path:
    """The wheel, in `folder`. Skips the test where this environment has no setuptools that can build it."""
    try:
        setuptools = importlib.metadata.version("setuptools")
    except importlib.metadata.PackageNotFoundError:
        setuptools = "0"
    if int(setuptools.partition(".")[0]) < 77:
        pytest.skip(f"the wheel needs setuptools 77 to be built without a network, here is {setuptools}")
    copy = folder / "source"  # setuptools builds inside the sources
    copy.mkdir(parents=True)
    for name in _SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", folder, copy], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpacked(wheel: Path, folder: Path) -> Path:
    """A folder for PYTHONPATH with what the wheel holds, and nothing of the checkout."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder
