"""Tests on other versions than the pinned ones: `nox` for all sessions (extra `dev`), or `nox -s NAME`.

    nox -s pythons                  the plugin's tests on each Python that is here
    nox -s transformers             HiMAP and LLaVA on the oldest and the newest supported transformers
    nox -s pytests                  the plugin on the oldest and the newest pytest
    nox -s pythons-3.12 -- -k text  arguments go to pytest

Each session installs the package and tests the built wheel, as `ci/test` does. Set PIP_EXTRA_INDEX_URL to
https://download.pytorch.org/whl/cpu for a torch without CUDA.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import nox

PROJECT = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if "Python :: 3." in each]
OLDEST, NEWEST = ">=5.17,<5.18", ">=5.17,<5.24"  # transformers, as in the extra llava

nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["pythons", "transformers", "pytests"]


@nox.session(python=PYTHONS)
def pythons(session: nox.Session) -> None:
    """The plugin on each Python."""
    _test(session, "tests/vram")


@nox.session(python=PYTHONS[0])
@nox.parametrize("version", [OLDEST, NEWEST], ids=["oldest", "newest"])
def transformers(session: nox.Session, version: str) -> None:
    """HiMAP and LLaVA on the ends of what is supported."""
    _test(session, "tests/himap", "tests/llava", requirement=f"transformers{version}")


@nox.session(python=PYTHONS[0])
@nox.parametrize("version", ["==8.3.*", ""], ids=["oldest", "newest"])
def pytests(session: nox.Session, version: str) -> None:
    """The plugin on the ends of what is supported."""
    _test(session, "tests/vram/plugin", "tests/vram/budgets", "tests/vram/history", requirement=f"pytest{version}")


def _test(session: nox.Session, *tests: str, requirement: str = "pytest") -> None:
    """Install the newest that fits, build the wheel, and run tests on it in a folder without the packages."""
    session.install(".[test]", requirement, "build", "setuptools>=77")
    # Not `create_tmp`, which has tests make their projects below the checkout, whose pytest.ini would count there.
    build = Path(session.virtualenv.location).resolve() / "build"
    session.run("python", "ci/built.py", str(build))
    session.chdir(build / "tested")
    wheel = str(build / "wheel")
    session.run(
        "python", "-m", "pytest", *(session.posargs or ("-q", *tests)), env={"PYTHONPATH": wheel, "VRAM_TESTED": wheel}
    )
