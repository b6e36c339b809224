"""`ci/gate`: one command, one verdict, one exit code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / "ci"
SUITE = """
import os, torch
def test_it_is_stable(vram):
    with torch.inference_mode():
        recording = vram.replay(lambda n: torch.zeros(int(os.environ["SIZE"])), [1], name="only", laps=3)
    vram.assert_stable(recording)
"""
# Asking what the processor is takes longer than all the rest.
CONFTEST = "def pytest_benchmark_generate_machine_info(): return {}\n"


class Project:
    """A throwaway copy of the commands, in an environment that is set up already. `log`: how stubs were called."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, root / "log"
        shutil.copytree(CI, root / "ci", ignore=shutil.ignore_patterns("__pycache__", "budgets"))
        (root / "pyproject.toml").write_text("")
        (root / "pytest.ini").write_text("[pytest]\n")
        self.environment = root / "environment"
        (self.environment / "bin").mkdir(parents=True)
        for name, starts in (("python", ""), ("vram", " -m vram")):
            self.program(self.environment / "bin" / name, f'exec "{sys.executable}"{starts} "$@"')
        told = (root / "pyproject.toml").read_bytes() + (root / "ci" / "constraints.txt").read_bytes()
        packed = subprocess.run(["cksum"], input=told, capture_output=True, check=True)  # noqa: S607
        (self.environment / ".himap-vram-setup").write_text(f"{packed.stdout.decode().strip()} {root}\n")

    def program(self, path: Path, line: str) -> None:
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    def stub(self, path: Path, name: str) -> None:
        """A program that ends with what the environment's `name` says."""
        self.program(path, f'echo "$0" "$@" >> "{self.log}"\nexit "${name}"')

    def gate(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Exit code and the last line."""
        known = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        done = subprocess.run(
            [self.root / "ci" / "gate", *arguments],
            cwd=self.root,
            env={**known, "VIRTUAL_ENV": str(self.environment), **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        lines = done.stdout.splitlines()
        assert lines, done.stderr
        print(done.stdout, done.stderr)
        return done.returncode, lines[-1]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture
def stubbed(project: Project) -> Project:
    project.stub(project.root / "ci" / "memory", "SUITE")
    project.stub(project.environment / "bin" / "vram", "COMPARE")
    return project


@pytest.mark.parametrize(
    ("suite", "compare", "accept", "code", "says"),
    [
        (0, 0, False, 0, "no regression against the base (recorded)"),
        (0, 1, False, 1, "a regression was found against the base (recorded)"),
        (0, 2, False, 2, "nothing was compared"),
        (0, 3, False, 3, "nothing to compare with; make a run of good code the base with ci/gate --vram-accept"),
        (0, 70, False, 70, "vram compare itself failed"),
        (0, 130, False, 130, "interrupted"),
        (1, 0, False, 1, "found by the memory suite"),
        (1, 3, False, 1, "found by the memory suite"),
        (1, 70, False, 1, "found by the memory suite"),
        (3, 0, False, 3, "a mode has no decision"),
        (3, 1, False, 1, "a regression was found against the base"),
        (2, 0, False, 2, "nothing was measured"),
        (130, 0, False, 130, "interrupted"),
        (70, 0, False, 70, "the memory suite itself failed"),
        (5, 0, False, 70, "the memory suite itself failed"),
        (0, 1, True, 0, "accepted"),
        (0, 3, True, 0, "accepted"),
        (3, 0, True, 3, "a mode has no decision"),
        (1, 0, True, 1, "found by the memory suite"),
        (0, 2, True, 2, "nothing was compared"),
    ],
)
def test_exit_code(stubbed: Project, suite: int, compare: int, accept: bool, code: int, says: str) -> None:
    """Found comes before inconclusive, and nothing that was not compared is fine; the last line says which."""
    flags = ("--vram-accept",) if accept else ()
    found, line = stubbed.gate(*flags, SUITE=str(suite), COMPARE=str(compare))
    assert found == code
    assert line.startswith("ci/gate: ")
    assert says in line


def test_what_it_takes_goes_where_it_belongs(stubbed: Project) -> None:
    """The base and the criteria to `vram compare`, the rest to the suite; this run's name to both."""
    stubbed.gate("--base", "main", "-k", "a b", "--fail=peak:2%", "--fail", "growth:0", SUITE="0", COMPARE="0")
    suite, compare = stubbed.log.read_text().splitlines()
    name = suite.split("--benchmark-save ")[1].split()[0]
    storage = f"file://{stubbed.root}/.benchmarks"
    assert suite.endswith(f"ci/memory --benchmark-quiet --benchmark-save {name} --benchmark-storage {storage} -k a b")
    assert compare.endswith(f"vram compare main {name} --storage {storage} --fail peak:2% --fail growth:0")


def test_a_base_without_a_name_is_bad_usage(stubbed: Project) -> None:
    """Before anything is measured."""
    assert stubbed.gate("--base", SUITE="0", COMPARE="0") == (2, "ci/gate: --base needs a value")
    assert not stubbed.log.exists()


def test_from_the_first_run_to_a_regression(project: Project) -> None:
    """A whole one, on a suite of one line: the first run has no base and says what to do, a byte more is a
    regression, and of another run's figures no verdict is made up."""
    (project.root / "tests" / "memory").mkdir(parents=True)
    (project.root / "tests" / "memory" / "test_tiny.py").write_text(SUITE)
    (project.root / "conftest.py").write_text(CONFTEST)
    (project.root / "ci" / "llava").mkdir()  # a project of one mode, and nothing to import for it
    (project.root / "ci" / "llava" / "modes.py").write_text('MODES = ("only",)\n')
    quick = ("--vram-device", "cpu", "-p", "no:xdist", "-p", "no:hypothesispytest")
    assert project.gate(*quick, SIZE="1000") == (
        3,
        "ci/gate: inconclusive: nothing to compare with; make a run of good code the base with ci/gate --vram-accept",
    )
    assert project.gate(*quick, SIZE="1001") == (1, "ci/gate: a regression was found against the base (recorded)")
    assert len(list(project.root.glob(".benchmarks/*/000*.json"))) == 2
