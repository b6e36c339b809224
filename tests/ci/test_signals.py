"""`ci/memory` and `ci/gate` under signals: passed on to every process, soon over, and nothing is left behind."""

from __future__ import annotations

import fcntl
import os
import pty
import shlex
import signal
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ci.project import Project

# Instead of the suite: a process with a child, that says who they are and waits. STUBBORN ones ignore signals.
WAITS = """
import os, signal, subprocess, sys, time
if os.environ.get("STUBBORN"):
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"])
with open("pids.part", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename("pids.part", "pids")
time.sleep(60)
"""
SUITE = f"def test_waits():{textwrap.indent(WAITS, '    ')}"


def started(project: Project, command: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """A command whose suite waits already."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    vram = [sys.executable, "-m", "vram", "gate"]
    process = subprocess.Popen(
        [*(vram if command == "vram gate" else [project.root / "ci" / command]), *arguments],
        cwd=project.root,
        env={**known, "VIRTUAL_ENV": str(project.environment), **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for((project.root / "pids").exists, seconds=30)
    return process


def wait_for(condition: object, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def left_behind(project: Project) -> list[int]:
    """Those of the suite's processes that still run; a zombie has ended."""
    pids = [int(pid) for pid in (project.root / "pids").read_text().split()]
    return [pid for pid in pids if _runs(pid)]


def _runs(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)  # noqa: S607
    return state.stdout.strip() != "" and not state.stdout.startswith("Z")


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """The commands, with a suite that waits where pytest would run; killed afterwards where it was left."""
    project = Project(tmp_path)
    (project.root / "pytest.py").write_text(WAITS)
    run = f'case "$*" in "-m pip"*) exec "{sys.executable}" pytest.py;; esac\nexec "{sys.executable}" "$@"'
    project.program(project.environment / "bin" / "python", run)
    yield project
    if (project.root / "pids").exists():
        for pid in left_behind(project):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["memory", "gate", "vram gate"])
def test_a_signal_ends_all_of_it(project: Project, command: str, number: signal.Signals) -> None:
    """To the command alone, as `kill PID` and CI runners send it: 128 + its number, at once, with no process left."""
    process = started(project, command)
    begin = time.monotonic()

    process.send_signal(number)
    process.communicate(timeout=20)

    assert process.returncode == 128 + number
    assert time.monotonic() - begin < 5
    assert left_behind(project) == []


def test_a_signal_ends_set_up_too(project: Project) -> None:
    """pip, which installs what is pinned, is a process like the suite."""
    (project.environment / ".himap-vram-setup").unlink()
    process = started(project, "memory")

    process.terminate()
    process.communicate(timeout=20)

    assert process.returncode == 143
    assert left_behind(project) == []


def test_what_ignores_the_signal_is_killed(project: Project) -> None:
    """After a grace period, which is shorter here; the whole takes less than 10 seconds."""
    source = project.root / "vram" / "gating" / "supervise.py"
    text = source.read_text()
    assert "GRACE_SECONDS = 7" in text
    source.write_text(text.replace("GRACE_SECONDS = 7", "GRACE_SECONDS = 1"))
    process = started(project, "memory", STUBBORN="1")

    process.terminate()
    output, _ = process.communicate(timeout=20)

    assert (process.returncode, output) == (143, "ci/memory: ended by SIGTERM\n")
    assert left_behind(project) == []


def test_an_interrupted_suite_still_says_what_it_measured(tmp_path: Path) -> None:
    """pytest gets the interrupt once, and ends as it always does: with its closing lines, then ours."""
    project = Project(tmp_path)
    (project.root / "tests" / "memory").mkdir(parents=True)
    (project.root / "tests" / "memory" / "test_waits.py").write_text(SUITE)
    unused = [f"-pno:{plugin}" for plugin in ("xdist", "hypothesispytest", "cacheprovider")]
    process = started(project, "gate", "--vram-device", "cpu", *unused)

    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)

    assert process.returncode == 130
    assert "KeyboardInterrupt" in output
    assert output.splitlines()[-1] == "ci/gate: interrupted"


def test_on_a_terminal_the_keys_work(project: Project) -> None:
    """The suite is in the terminal's foreground: it can read what is typed (`--pdb`), and Ctrl-C ends it."""
    (project.root / "pytest.py").write_text(f'print("typed:", input("? "))\n{WAITS}')
    keys, terminal = pty.openpty()
    command = f"exec {shlex.quote(str(project.root / 'ci' / 'memory'))}"

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        ["bash", "-c", command],  # noqa: S607
        cwd=project.root,
        env={**os.environ, "VIRTUAL_ENV": str(project.environment)},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=take_terminal,
    )
    os.write(keys, b"hello\n")
    wait_for((project.root / "pids").exists, seconds=30)
    os.write(keys, b"\x03")

    assert process.wait(timeout=20) == 130
    assert b"typed: hello" in os.read(keys, 10_000)
    assert left_behind(project) == []
    os.close(keys)
    os.close(terminal)
