"""`ci/test`: checks and tests side by side, and nothing that failed is lost."""

from __future__ import annotations

import re
from itertools import accumulate
from pathlib import Path

import pytest

from tests.ci.project import Project

WHEEL = " in tested, of wheel"  # what the stub of Python says of where it runs
CHECKS = ("ruff", "mypy", "lint-imports")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """The commands, with programs that say their name and arguments and exit with a code of the environment."""
    project = Project(tmp_path)
    where = '${VRAM_TESTED:+ in $(basename "$PWD"), of $(basename "$VRAM_TESTED")}'
    for name in CHECKS:
        variable = name.upper().replace("-", "_")
        project.program(
            project.environment / "bin" / name, f'echo "{name}${{*:+ $*}}{where}"\nexit "${{{variable}:-0}}"'
        )
    cases = "*built.py*) mkdir -p build/tested; exit ${BUILD:-0};;"
    cases += " *tests/llava) exit ${MODELS:-0};; *tests/docs) exit ${COMMANDS:-0};;"
    cases += " *--ignore*) exit ${TESTS:-0};; *tests/vram/zoo) exit ${ZOO:-0};;"
    cases += " *tests/memory) echo memory; exit ${MEMORY:-0};;"
    pytest_stub = f'case "$*" in {cases} esac\nexit "${{TESTS:-0}}"'
    overlap = '[ -z "${BEGUN:-}" ] || { echo + >>"$BEGUN"; sleep 0.2; echo - >>"$BEGUN"; }'
    project.program(project.environment / "bin" / "python", f'echo "python $*{where}"\n{overlap}\n{pytest_stub}')
    return project


def test_everything_runs_and_the_memory_suite_is_printed_last(project: Project) -> None:
    """Checks of the checkout, not of the wheel; coverage with --full, then the memory suite, whose closing lines are
    the last."""
    ended = project.run("test", "--full")
    lines = ended.stdout.splitlines()

    assert (ended.returncode, ended.stderr) == (0, "")
    assert lines[0] == "python ci/built.py build"
    rest = "tests/vram --ignore tests/vram/zoo"
    parts = (rest, "tests/vram/zoo", "tests/himap tests/llava", "tests/ci tests/docs")
    for line, folders in zip(lines[1:5], parts, strict=True):
        assert re.fullmatch(rf"python -m coverage run -m pytest --full -q (-n .* )?{folders}{WHEEL}", line)
    assert lines[5:] == [
        "ruff check .",
        "ruff format --check .",
        "mypy",
        "lint-imports",
        f"python -m coverage combine --quiet{WHEEL}",
        f"python -m coverage report --skip-covered{WHEEL}",
        f"python -m coverage run -m pytest --full tests/memory{WHEEL}",
        "memory",
    ]


@pytest.mark.parametrize(
    ("variable", "part"),
    [
        ("RUFF", "checks"),
        ("MYPY", "checks"),
        ("LINT_IMPORTS", "checks"),
        ("TESTS", "tests/vram"),
        ("ZOO", "tests/vram/zoo"),
        ("MODELS", "tests/himap,llava"),
        ("COMMANDS", "tests/ci,docs"),
        ("MEMORY", "tests/memory"),
    ],
)
def test_whatever_fails_fails_the_run_and_the_rest_still_runs(project: Project, variable: str, part: str) -> None:
    """The exit code is 1, standard error names the part, and all other parts are printed."""
    ended = project.run("test", **{variable: "1"})

    assert (ended.returncode, ended.stderr) == (1, f"ci/test: failed: {part}\n")
    assert len(ended.stdout.splitlines()) == 11


@pytest.mark.parametrize(("cores", "most"), [(2, 2), (8, 4)])
def test_no_more_run_beside_one_another_than_there_are_cores_for(
    project: Project, tmp_path: Path, cores: int, most: int
) -> None:
    """Two on two cores, whose time a third and a fourth would waste, and four on more."""
    begun = tmp_path / "begun"
    project.program(project.environment / "bin" / "nproc", f"echo {cores}")
    assert project.run("test", BEGUN=str(begun)).returncode == 0

    running = list(accumulate(1 if line == "+" else -1 for line in begun.read_text().split()))
    assert len(running) == 2 * 6  # the build, and five of pytest
    assert max(running) == most


def test_a_wheel_that_cannot_be_built_is_not_tested(project: Project) -> None:
    """Nothing else is tested instead of it."""
    ended = project.run("test", BUILD="1")
    assert (ended.returncode, ended.stderr) == (1, "ci/test: failed: build\n")
    assert "pytest" not in ended.stdout


def test_arguments_go_to_one_pytest(project: Project) -> None:
    """A narrow run, and every check beside it."""
    ended = project.run("test", "tests/himap", "-k", "a b")

    assert ended.returncode == 0
    assert ended.stdout.splitlines()[0] == "python -m pytest tests/himap -k a b"
    assert [line.split()[0] for line in ended.stdout.splitlines()[1:]] == ["ruff", "ruff", "mypy", "lint-imports"]
