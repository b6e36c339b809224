"""`vram bisect` on throwaway repositories: which commit is named, what is skipped, and what stays as it was."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.source import PACKAGES
from tests.vram.history.made import MACHINE, entry, run_json
from vram import cli
from vram.gating import imported
from vram.gating.bisect import Worse, worse
from vram.history.compare import Comparison, Located, judge

PEAK = 123456789
RUN = json.dumps(run_json([entry(PEAK)]))
# Stands for Python, which is called for pytest alone: measures what the commit says, or can't.
FAKE = f"""#!{sys.executable} -SE
import os, sys, time
from pathlib import Path
assert sys.argv[1:3] == ["-m", "pytest"] and sys.argv[-2:] == ["tests", "-q"], sys.argv
option = dict(zip(sys.argv[3:], sys.argv[4:]))
within = os.environ.get("WITHIN", ".")
assert (Path.cwd().name == "part") == (within == "part"), Path.cwd()
text = (Path("../size.txt") if within == "part" else Path("size.txt")).read_text()
if text == "slow":
    Path(os.environ["STARTED"]).touch()
    time.sleep(60)
if text == "elsewhere":
    Path(os.environ["VRAM_IMPORTED"]).write_text("model\\t/checkout/model.py\\n")
elif not text.isdigit():
    print("===== 1 error in 0.01s =====")
    sys.exit(2)
elif text != "0":
    folder = Path(option["--benchmark-storage"].removeprefix("file://")) / {MACHINE!r}
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + len(list(folder.iterdir()))
    run = Path(__file__).with_name("run.json").read_text().replace("{PEAK}", text)
    (folder / f"{{number:04}}_{{option['--benchmark-save']}}.json").write_text(run)
"""


QUICK = "def pytest_benchmark_generate_machine_info(): return {}\n"  # asking what the processor is starts a process


def git(folder: Path, *arguments: str) -> str:
    own = ("-c", "user.name=A. Author", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    command = ["git", *own, "-c", "init.defaultBranch=main", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def committed(folder: Path, number: int, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    git(folder, "add", ".")
    git(folder, "commit", "--allow-empty", "-q", "-m", f"Commit {number}")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, which is the current folder; pytest is FAKE."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    fake, folder = tmp_path / "fake", tmp_path / "repository"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    (tmp_path / "run.json").write_text(RUN)
    monkeypatch.setattr(sys, "executable", str(fake))
    folder.mkdir()
    git(folder, "init", "-q")
    monkeypatch.chdir(folder)
    return folder


def bisected(capfd: pytest.CaptureFixture[str], *options: str, good: str = "", bad: str = "HEAD") -> tuple[int, str]:
    """Exit code and all that was printed."""
    first = git(Path.cwd(), "rev-list", "--max-parents=0", "HEAD").strip()
    capfd.readouterr()
    code = cli.main(["bisect", good or first, bad, *options, "--", "tests", "-q"])
    return code, "".join(capfd.readouterr())


def sizes(folder: Path, *texts: str) -> list[str]:
    """Commits with these sizes, in this order; returns their short ids."""
    for number, text in enumerate(texts):
        committed(folder, number, {"size.txt": text, "part/other.txt": str(number)})
    return [
        git(folder, "rev-parse", "--short", commit).strip()
        for commit in git(folder, "rev-list", "--reverse", "HEAD").split()
    ]


def test_the_commit_is_named_to_the_byte(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With its title, its author, and the figures beside those of the commit before it."""
    ids = sizes(repository, *["1000"] * 5, *["1001"] * 3, "900", "1001")

    code, printed = bisected(capfd)

    assert code == 0
    lines = printed.splitlines()
    assert lines[0] == "worse in BAD than in GOOD: peak of himap"
    assert f"{ids[5]} Commit 5: bad" in lines
    assert f"{ids[4]} Commit 4: good" in lines
    assert f"first bad commit: {ids[5]} Commit 5 (A. Author, " in printed
    assert "himap  peak    1,000 B  1,001 B  +1 B (+0.10%)" in printed
    assert re.search(rf"compared with \d+_{ids[4]}", printed)


def test_the_repository_stays_as_it_is(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A change that is not committed, a bisection that goes on, and no worktree or saved run more; from a folder of
    the repository the tests run in that folder."""
    sizes(repository, "1000", "1000", "1001", "1001", "1001")
    git(repository, "bisect", "start", "HEAD", "HEAD~3")
    (repository / "size.txt").write_text("changed")
    before = [git(repository, *command) for command in (("status",), ("bisect", "log"), ("worktree", "list"))]
    monkeypatch.chdir("part")
    monkeypatch.setenv("WITHIN", "part")

    assert bisected(capfd, good="main~4", bad="main")[0] == 0

    assert [git(repository, *command) for command in (("status",), ("bisect", "log"), ("worktree", "list"))] == before
    assert sorted(path.name for path in repository.iterdir()) == [".git", "part", "size.txt"]


@pytest.mark.parametrize("unknown", ["broken", "0", "elsewhere"])
def test_what_cannot_be_measured_is_skipped(unknown: str, repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With the reason. Where it stands next to the first bad commit, both are named, and neither is blamed."""
    ids = sizes(repository, "1000", "1000", unknown, "1001", "1001")

    code, printed = bisected(capfd)

    reason = {
        "broken": "pytest ended with 2: 1 error in 0.01s",
        "0": "nothing was measured: ",
        "elsewhere": "its tests import model from /checkout/model.py, which is not the commit's: name the folder of "
        "its own in --path",
    }[unknown]
    assert code == 3
    assert f"{ids[2]} Commit 2: skipped, {reason}" in printed
    assert printed.endswith(f":\n  {ids[2]} Commit 2\n  {ids[3]} Commit 3\n")


@pytest.mark.parametrize(
    ("texts", "options", "code", "text"),
    [
        (("1000", "1001", "1000"), (), 3, "BAD is not worse than GOOD:\n"),
        (("1000", "1005", "1010"), ("--fail", "peak:1%"), 3, "BAD is not worse than GOOD:\n"),
        (("1000", "1005", "1011"), ("--fail", "peak:1%"), 0, "first bad commit: {2} Commit 2"),
        (
            ("broken", "1000", "1001"),
            (),
            2,
            "vram bisect: GOOD must be measured, and {0} Commit 0 was not: pytest ended",
        ),
        (
            ("1000", "1000", "broken"),
            (),
            2,
            "vram bisect: BAD must be measured, and {2} Commit 2 was not: pytest ended",
        ),
        (("1000",), ("--fail", "peek:1"), 2, "vram bisect: "),
    ],
)
def test_good_and_bad_decide_what_is_worse(
    texts: Sequence[str],
    options: Sequence[str],
    code: int,
    text: str,
    repository: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Within a tolerance nothing is; a commit that can't be measured is no good one and no bad one."""
    ids = sizes(repository, *texts)
    ended, printed = bisected(capfd, *options)
    assert ended == code
    assert text.format(*ids) in printed


def test_a_name_that_is_no_commit_is_one_line(repository: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Git's own, after its command; so is a folder without a repository."""
    sizes(repository, "1000")
    code, printed = bisected(capfd, bad="nowhere")
    assert (code, printed) == (
        2,
        "vram bisect: git rev-parse --verify nowhere^{commit}: fatal: Needed a single revision\n",
    )
    os.chdir(repository.parent)
    assert cli.main(["bisect", "a", "b"]) == 2
    assert "not a git repository" in capfd.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_end_leaves_nothing_behind(number: signal.Signals, code: int, repository: Path, tmp_path: Path) -> None:
    """Ended by a signal while tests run: no worktree, no temporary folder."""
    sizes(repository, "slow", "1000")
    started, temporary = tmp_path / "started", tmp_path / "temporary"
    temporary.mkdir()
    # Where these tests run in a shell's background, SIGINT is ignored.
    heeds = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{heeds}; sys.executable = {sys.executable!r}; from vram import cli; sys.exit(cli.main(sys.argv[1:]))"
    process = subprocess.Popen(
        [f"{sys.exec_prefix}/bin/python", "-c", program, "bisect", "HEAD~1", "HEAD", "--", "tests", "-q"],
        env={**os.environ, "PYTHONPATH": str(PACKAGES), "TMPDIR": str(temporary), "STARTED": str(started)},
        start_new_session=True,
    )
    while not started.exists() and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, number)
    assert process.wait() == code
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert not list(temporary.iterdir())


def test_real_tests_run_on_the_commits_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], forked: None
) -> None:
    """Though the checkout's own is on PYTHONPATH, as an editable install would have it. Two runs of pytest."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    test = "from model import forward\n\n\ndef test_it(vram):\n    vram.replay(forward, [1], name='it', laps=1)\n"
    for number, size in enumerate((1000, 1500)):
        code = f"import torch\n\n\ndef forward(n):\n    return torch.ones({size}).sum().item()\n"
        files = {"src/model/__init__.py": code, "test_it.py": test, "conftest.py": QUICK}
        committed(tmp_path, number, files)
    (tmp_path / "src/model/__init__.py").write_text("raise RuntimeError('of the checkout')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "src"), str(PACKAGES)]))

    assert cli.main(["bisect", "HEAD~1", "HEAD", "--", "-q", "--vram-device=cpu"]) == 0

    printed = capfd.readouterr().out
    assert "worse in BAD than in GOOD: peak of it" in printed
    assert "more than 4.01 KiB" in printed or "2,000 B" in printed


def test_packages_from_elsewhere_are_named(tmp_path: Path) -> None:
    """Modules of the checkout, and packages called as the commit's own; not the environment's, not the commit's."""
    commit, checkout = tmp_path / "commit", tmp_path / "checkout"
    for package in ("model", "src/inner", "src/inner/nested"):
        (commit / package).mkdir(parents=True)
        (commit / package / "__init__.py").touch()
    own = imported.own(commit)
    assert own == {"model", "inner"}
    files = {
        "model": str(commit / "model/__init__.py"),
        "inner": "/site-packages/inner/__init__.py",
        "nested": "/site-packages/nested/__init__.py",
        "helper": str(checkout / "helper.py"),
        "torch": f"{sys.prefix}/lib/torch/__init__.py",
        "sys": None,
    }
    assert set(imported.elsewhere(files, commit, checkout, own)) == {"inner", "helper"}
    assert not imported.elsewhere({"torch": files["torch"]}, commit, Path(sys.prefix).parent, own)


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        (entry(1001), "bad"),
        (entry(1000), "good"),
        (entry(999), "good"),
        (entry(None, verdict="out of memory"), "bad"),
        (entry(None, verdict="inconclusive"), "skip"),
        (entry(1001, mode="other"), "skip"),
        (entry(1001, samples=3), "skip"),
    ],
)
def test_only_what_is_measured_decides(now: object, verdict: str) -> None:
    """The same recording with the same facts; running out of memory is worse than any figure."""
    good = Located("run 1", entry(1000))
    judged = judge(now, good if now.key == good.entry.key or now.verdict == "out of memory" else None)  # type: ignore[attr-defined,arg-type]
    assert Worse("himap", "peak").verdict(Comparison([judged])) == verdict


def test_running_out_of_memory_is_sought_as_such() -> None:
    """A commit that has figures is good, whatever they are."""
    good = Located("run 1", entry(1000))
    (sought,) = worse(Comparison([judge(entry(None, verdict="out of memory"), good)]))
    assert str(sought) == "himap ran out of memory"
    assert sought.verdict(Comparison([judge(entry(5000), good)])) == "good"
