"""`ci/gate`: `vram gate` on the memory suite. What a verdict is made of is in tests/vram/gating."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ci.project import Project

SUITE = """
import os, torch
def test_it_is_stable(vram):
    with torch.inference_mode():
        recording = vram.replay(lambda n: torch.zeros(int(os.environ["SIZE"])), [1], name="only", laps=3)
    vram.assert_stable(recording)
"""
# Instead of pytest: its arguments, and a report of nothing.
STUB = """
import sys
print(sys.argv[1:])
with open(sys.argv[sys.argv.index("--vram-report") + 1], "w") as file:
    file.write('{"schema": 1, "environment": {}, "modes": [], "tests": []}')
"""
# Asking what the processor is takes longer than all the rest.
CONFTEST = "def pytest_benchmark_generate_machine_info(): return {}\n"


def gate(project: Project, *arguments: str, **variables: str) -> tuple[int, str]:
    """Exit code and the last line."""
    ended = project.run("gate", *arguments, **variables)
    print(ended.stdout, ended.stderr)
    lines = ended.stdout.splitlines()
    assert lines, ended.stderr
    return ended.returncode, lines[-1]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """One of a single mode, and nothing to import for it."""
    project = Project(tmp_path)
    (project.root / "llava").mkdir()
    (project.root / "llava" / "__init__.py").write_text("")
    (project.root / "llava" / "modes.py").write_text('MODES = ("only",)\n')
    return project


@pytest.mark.parametrize("command", ["gate", "memory"])
def test_what_it_takes_goes_where_it_belongs(project: Project, command: str) -> None:
    """The base and the criteria to the gate, the rest to pytest; every mode must have a decision."""
    (project.root / "reports").mkdir()
    (project.root / "pytest.py").write_text(STUB)
    ended = project.run(command, "-k", "a b", "--fail=peak:2%", "--vram-new", "skip", CI="true")
    assert (ended.returncode, ended.stderr) == (3, "")
    arguments, line = ended.stdout.splitlines()
    assert line == f"ci/{command}: inconclusive: no decision on only"
    suite = f"'{project.root}/tests/memory', '-c', '{project.root}/pytest.ini', '--rootdir', '{project.root}', '-q'"
    report = f"'--vram-report', '{project.root}/reports/memory.json', '--vram-new', 'skip'"
    assert arguments.startswith(f"['--vram-gate', {report}, ")
    assert arguments.endswith(f"{suite}, '-k', 'a b']")
    compares = "'--vram-compare=recorded', '--vram-compare-fail=peak:2%'" in arguments
    assert compares == ("--benchmark-save" in arguments) == (command == "gate")


def test_a_base_without_a_name_is_bad_usage(project: Project) -> None:
    """Before anything is measured."""
    (project.root / "pytest.py").write_text("print('measured')")
    ended = project.run("gate", "--base")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "--base" in ended.stderr


def test_bad_input_is_said_by_the_command_that_was_called(project: Project) -> None:
    """A suite that wrote no report judged nothing."""
    (project.root / "pytest.py").write_text("")
    ended = project.run("gate")
    assert (ended.returncode, ended.stderr.partition(":")[0]) == (2, "ci/gate")


def test_modes_that_can_not_be_read_end_it(project: Project) -> None:
    """A gate that did not know which decisions it needs would be open."""
    (project.root / "llava" / "modes.py").write_text("raise ImportError('broken')")
    assert project.run("gate").returncode not in (0, 3)


def test_from_the_first_run_to_a_regression(forked: None, project: Project) -> None:
    """A whole one, on a suite of one line: the first run has no base and says what to do, a byte more is a regression,
    which the page and the comment say too, and of another run's figures no verdict is made up."""
    (project.root / "tests" / "memory").mkdir(parents=True)
    (project.root / "tests" / "memory" / "test_tiny.py").write_text(SUITE)
    (project.root / "conftest.py").write_text(CONFTEST)
    quick = ("--vram-device", "cpu", "-p", "no:xdist", "-p", "no:hypothesispytest")
    assert gate(project, *quick, SIZE="1000", CI="") == (
        3,
        "ci/gate: inconclusive: nothing to compare with; make a run of good code the base with ci/gate --vram-accept",
    )
    verdict = "ci/gate: a regression was found against the base (recorded): 1 of 1 needs attention: 1 regression"
    assert gate(project, *quick, SIZE="1001", CI="") == (1, verdict)
    assert len(list(project.root.glob(".benchmarks/*/000*.json"))) == 2
    comment = (project.root / "reports" / "memory.md").read_text(encoding="utf-8")
    assert verdict in comment
    assert "test_tiny.py:5 <lambda>: aten.zeros float32 [1001]" in comment
    assert "1 regression" in (project.root / "reports" / "memory.html").read_text(encoding="utf-8")
