"""`ci/gate`: one command, one verdict, one exit code."""

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
    found, line = gate(stubbed, *flags, SUITE=str(suite), COMPARE=str(compare))
    assert found == code
    assert line.startswith("ci/gate: ")
    assert says in line


@pytest.mark.parametrize(
    ("arguments", "variables", "code"),
    [
        ((), {}, 0),
        ((), {"CI": "true"}, 3),
        ((), {"CI": "False"}, 0),
        (("--vram-new", "skip"), {"CI": "true"}, 0),
        (("--vram-new=fail",), {}, 3),
        (("--vram-accept-force",), {"CI": "true"}, 0),
    ],
)
def test_what_is_new_or_missing_is_not_fine_in_ci(
    stubbed: Project, arguments: tuple[str, ...], variables: dict[str, str], code: int
) -> None:
    """No regression, and a recording that is new or missing: inconclusive, unless --vram-new says otherwise."""
    vram = stubbed.environment / "bin" / "vram"
    stubbed.program(vram, f'echo "$@" >> "{stubbed.log}"\ncase "$*" in *"--fail new --fail missing") exit 1;; esac')
    found, line = gate(stubbed, *arguments, SUITE="0", **variables)
    assert found == code
    assert ("something is new or missing" in line) == (code == 3)


def test_what_it_takes_goes_where_it_belongs(stubbed: Project) -> None:
    """The base and the criteria to `vram compare`, the rest to the suite; this run's name to both."""
    gate(stubbed, "--base", "main", "-k", "a b", "--fail=peak:2%", "--fail", "growth:0", SUITE="0", COMPARE="0")
    suite, compare = stubbed.log.read_text().splitlines()
    name = suite.split("--benchmark-save ")[1].split()[0]
    storage = f"file://{stubbed.root}/.benchmarks"
    assert suite.endswith(f"ci/memory --benchmark-quiet --benchmark-save {name} --benchmark-storage {storage} -k a b")
    assert compare.endswith(f"vram compare main {name} --storage {storage} --fail peak:2% --fail growth:0")


def test_a_base_without_a_name_is_bad_usage(stubbed: Project) -> None:
    """Before anything is measured."""
    assert gate(stubbed, "--base", SUITE="0", COMPARE="0") == (2, "ci/gate: --base needs a value")
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
    assert gate(project, *quick, SIZE="1000") == (
        3,
        "ci/gate: inconclusive: nothing to compare with; make a run of good code the base with ci/gate --vram-accept",
    )
    assert gate(project, *quick, SIZE="1001") == (1, "ci/gate: a regression was found against the base (recorded)")
    assert len(list(project.root.glob(".benchmarks/*/000*.json"))) == 2
