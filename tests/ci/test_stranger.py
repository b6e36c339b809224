"""A stranger's project, from the built wheel alone: `vram init`, then what the action runs, on GitHub as here."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ci.built import build
from tests.ci.test_workflows import ROOT, step, yaml

CONFTEST = "def pytest_benchmark_generate_machine_info(): return {}\n"  # asking what the processor is takes long
SHOWN = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "ci.md").read_text(encoding="utf-8"), re.DOTALL)
# Plugins that a stranger need not have, and that take time.
QUICK = "-p no:cacheprovider -p no:xdist -p no:hypothesispytest -p no:asyncio"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel: that which ci/test tests, else one that is built for it."""
    if tested := os.environ.get("VRAM_TESTED"):
        return Path(tested)
    pytest.importorskip("build", reason="build is not installed")
    folder = tmp_path_factory.mktemp("built")
    build(folder)
    return folder / "wheel"


class Machine:
    """A runner with the wheel, and a project. `run` runs a script as a step of a job does."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.project, self.site, programs = folder / "project", wheel, folder / "bin"
        self.project.mkdir()
        programs.mkdir()
        for name, line in (("python", '"$@"'), ("vram", '-m vram "$@"'), ("pytest", '-m pytest "$@"')):
            (programs / name).write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {line}\n")
            (programs / name).chmod(0o755)
        known = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "VRAM_", "GITHUB"))
        }
        self.environment = {
            **known,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.site),
            "CI": "true",
        }

    def write(self, name: str, text: str) -> None:
        (self.project / name).parent.mkdir(exist_ok=True)
        (self.project / name).write_text(text, encoding="utf-8")

    def run(self, script: str, **variables: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],  # noqa: S607
            cwd=self.project,
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        print(done.stdout)
        return done.returncode, done.stdout


def test_a_project_from_init_to_a_planted_regression(wheel: Path, tmp_path: Path, forked: None) -> None:
    """The wheel suffices: init, the action's steps with the workflow's arguments, an accepted base, and then
    a peak that somebody made higher: exit 1, with the page and a comment that names the line. docs/ci.md shows what is
    printed. (Over 3 s: pytest and torch start twice, in processes, as they do on a runner.)"""
    says, regression, explained, accepted = SHOWN
    machine = Machine(tmp_path, wheel)
    machine.write("tests/conftest.py", CONFTEST)
    assert machine.run("vram init")[0] == 0
    (job,) = yaml.safe_load((machine.project / ".github/workflows/memory.yml").read_text())["jobs"].values()
    arguments = f"{job['steps'][-1]['with']['arguments']} {QUICK}"
    gate = {"COMMAND": "vram gate", "ARGUMENTS": arguments}
    install = step("action.yml", "Install vram where the job has not")["run"]
    assert machine.run(install, GITHUB_ACTION_PATH="/nowhere")[0] == 0

    code, printed = machine.run(step("action.yml", "Gate")["run"], **gate, ACCEPT="true")
    assert (code, printed.splitlines()[-1]) == (0, "vram gate: accepted: this run is the recorded base from now on")
    assert accepted in printed

    test = machine.project / "tests" / "test_memory.py"
    text = test.read_text(encoding="utf-8")
    test.write_text(
        text.replace("return model(", "more = torch.ones(batch, 4096)  # planted\n            return model(")
    )
    # Its budget is raised along with it: the base alone knows.
    budgets = machine.project / "budgets.toml"
    budgets.write_text(budgets.read_text().replace("peak_bytes = ", "peak_bytes = 9"))
    code, printed = machine.run(step("action.yml", "Gate")["run"], **gate, ACCEPT="false")
    assert code == 1
    assert printed.endswith(regression)
    comment = (machine.project / "reports" / "memory.md").read_text(encoding="utf-8")
    assert explained in comment
    assert explained.splitlines()[-1].strip() in printed  # in pytest's failure, too
    assert (machine.project / "reports" / "memory.html").stat().st_size > 10_000

    code, printed = machine.run("python -c 'import vram; print(vram.__file__)'; vram init")
    assert printed.startswith(f"{machine.site}/vram/")
    assert "nothing to write" in printed
    assert says.splitlines()[-1] in printed
