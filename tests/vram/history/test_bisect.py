"""The recipe for `git bisect` of docs/history.md, on a throwaway repository with a planted regression."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.source import PACKAGES, ROOT

PLANTED = 3  # of commits 0 to 5
# Stands for pytest: measures what the checkout says, or finds a checkout that can't be tested.
FAKE = f"""#!{sys.executable}
import sys
from pathlib import Path
sys.path[:0] = [{str(PACKAGES)!r}, {str(ROOT)!r}]
from tests.vram.history.hammer import storage
from tests.vram.history.made import entry, run_json
text = Path("size.txt").read_text()
if not text.strip().isdigit():
    sys.exit(2)
name = next(argument.partition("=")[2] for argument in sys.argv if argument.startswith("--benchmark-save="))
minute = len(list(Path(".").glob(".benchmarks/*/*.json")))
storage(Path(".benchmarks")).save(run_json([entry(int(text))], minute=minute), name)
"""


def git(folder: Path, *arguments: str) -> str:
    own = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-c", "init.defaultBranch=main")
    return subprocess.run(
        ["git", *own, *arguments],  # noqa: S607 - the git there is
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six commits; the peak rises by a byte with number PLANTED, and all change something else."""
    tools, folder = tmp_path / "bin", tmp_path / "repository"
    tools.mkdir()
    folder.mkdir()
    (tools / "pytest").write_text(FAKE)
    (tools / "vram").write_text(f'#!/bin/sh\nPYTHONPATH={PACKAGES} exec {sys.executable} -m vram "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git(folder, "init", "-q")
    (folder / ".gitignore").write_text(".benchmarks/\n")
    for number in range(6):
        (folder / "size.txt").write_text(str(1000 + (number >= PLANTED)))
        (folder / "other.txt").write_text(str(number))
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", f"commit {number}")
    return folder


def test_bisect_finds_the_commit_by_the_recipe(repository: Path) -> None:
    """To the byte, though every checkout saves a run; what can't be tested is skipped."""
    script = re.search(r"<<'SH'\n(.*?)SH\n", (ROOT / "docs" / "history.md").read_text(), re.DOTALL)
    assert script is not None
    judge = repository.parent / "judge.sh"
    judge.write_text(script[1])
    commits = git(repository, "rev-list", "--reverse", "HEAD").split()
    git(repository, "checkout", "-q", commits[0])
    subprocess.run(["pytest", "--benchmark-save=good"], cwd=repository, check=True)  # noqa: S607 - the fake above
    git(repository, "bisect", "start", commits[-1], commits[0])
    assert f"{commits[PLANTED]} is the first bad commit" in git(repository, "bisect", "run", "bash", str(judge))
    (repository / "size.txt").write_text("broken")
    skipped = subprocess.run(["bash", str(judge)], cwd=repository, check=False)  # noqa: S607 - as git runs it
    assert skipped.returncode == 125
