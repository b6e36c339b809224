"""Coverage of `ci/test --full`, as pyproject.toml sets it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SETTINGS = Path(__file__).parents[2] / "pyproject.toml"


def test_packages_that_tests_make_and_remove_are_not_reported(tmp_path: Path) -> None:
    """A test's folder may hold a package that is called as ours are; its lines are no lines of ours, and its files are
    gone when coverage is reported."""
    pytest.importorskip("coverage", reason="coverage comes with the extra dev, which CI installs")
    with tempfile.TemporaryDirectory() as elsewhere:
        for folder, name in ((tmp_path, "llava"), (Path(elsewhere), "himap")):
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text("x = 1\n")
        script = tmp_path / "script.py"
        script.write_text("import himap, llava\n")
        environment = os.environ | {
            "COVERAGE_FILE": str(tmp_path / "data"),
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{elsewhere}",
        }

        def coverage(*arguments: str) -> str:
            command = [sys.executable, "-m", "coverage", arguments[0], f"--rcfile={SETTINGS}", *arguments[1:]]
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
            assert ended.returncode == 0, ended.stdout + ended.stderr
            return ended.stdout

        coverage("run", str(script))
        shutil.rmtree(tmp_path / "llava")
        coverage("combine", "--quiet")
        printed = coverage("report")
    assert "himap" in printed
    assert "llava" not in printed
