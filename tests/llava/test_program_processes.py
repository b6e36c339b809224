"""The programs as processes: real signals, real pipes, real exits."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from llava.eval import custom_selection_inference, eval_scivqa
from tests.llava.forked import Forked
from tests.source import PYTHON_PATH


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": PYTHON_PATH, "PYTHONWARNINGS": "error"}


class Program:
    """A process of eval-scivqa; `stderr` is the file descriptor to read from."""

    def __init__(self, server: socket.socket, argv: tuple[str, ...], folder: Path, stdout: int, encoding: str) -> None:
        self.stderr, writing = os.pipe()
        module = "llava.eval.eval_scivqa"
        self.process = Forked(server, module, argv, folder, stdout=stdout, stderr=writing, encoding=encoding)
        os.close(writing)
        self.id = self.process.id

    def finish(self) -> tuple[int, str]:
        """Its exit code, and the rest of its stderr."""
        with os.fdopen(self.stderr) as stderr:
            rest = stderr.read()
        return self.process.wait(), rest


@pytest.fixture
def start(server: socket.socket, tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Starts eval-scivqa in `tmp_path`; its stdout is the file `out` there, unless one is passed."""
    started: list[Program] = []

    def start(*argv: str, stdout: int | None = None, encoding: str = "utf-8") -> Program:
        with (tmp_path / "out").open("wb") as out:
            started.append(Program(server, argv, tmp_path, out.fileno() if stdout is None else stdout, encoding))
        return started[-1]

    yield start
    for each in started:
        each.process.end()


@pytest.mark.full
def test_custom_selection_inference_as_a_process(tmp_path: Path) -> None:
    """`python -m` from any folder, warnings as errors: exit 0, results in that folder.

    Takes long, as the model's library is imported: on every push the programs are forked from a process that has it.
    """
    run = subprocess.run(
        [sys.executable, "-m", "llava.eval.custom_selection_inference", "--num-samples", "1"],
        cwd=tmp_path,
        env=_environment(),
        capture_output=True,
        timeout=240,
        check=False,
    )

    assert run.returncode == 0, run.stderr.decode()
    assert run.stdout.startswith(b"CUSTOM TOKEN SELECTION TECHNIQUE WILL BE USED ------\n")
    assert json.loads((tmp_path / "custom-selection-inference-custom-fps.json").read_text())["complete"]


def test_ctrl_c_in_a_process(tmp_path: Path, start: Callable[..., Program]) -> None:
    """A real SIGINT in the middle: exit 130, the answers so far, one last line, no traceback."""
    program = start("--max-new-tokens", "60", "--output-file", "r.json")
    seen = b""
    while b" 1/20" not in seen:
        read = os.read(program.stderr, 4096)
        assert read, seen.decode()
        seen += read
    os.kill(program.id, signal.SIGINT)
    code, rest = program.finish()

    assert code == 130
    result = json.loads((tmp_path / "r.json").read_text())
    assert not result["complete"]
    assert 1 <= result["total_samples"] < 20
    left = f"{result['total_samples']} of 20 answers are in {tmp_path / 'r.json'}, marked incomplete"
    assert rest.endswith(f"\neval-scivqa: error: interrupted; {left}; --resume goes on from there\n")
    assert "Traceback" not in seen.decode() + rest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "r.json"]


def test_a_reader_that_has_gone_costs_nothing_but_its_text(tmp_path: Path, start: Callable[..., Program]) -> None:
    """`| head` closes the pipe: the run goes on, its results are whole, exit 0, and no traceback."""
    reading, writing = os.pipe()
    os.close(reading)
    program = start("--num-samples", "1", "--output-file", "r.json", stdout=writing)
    os.close(writing)
    code, err = program.finish()

    assert code == 0, err
    assert json.loads((tmp_path / "r.json").read_text())["complete"]
    assert "Traceback" not in err


def test_a_name_that_the_terminal_can_not_show_is_spelt(tmp_path: Path, start: Callable[..., Program]) -> None:
    """An ASCII terminal and a file with an accent: its escape is printed, exit 0."""
    name = "r\u00e9.json"
    code, err = start("--num-samples", "1", "--output-file", name, encoding="ascii").finish()

    assert code == 0, err
    assert (tmp_path / "out").read_bytes().endswith(b"r\\xe9.json\n")
    assert (tmp_path / name).is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_one_line(start: Callable[..., Program]) -> None:
    """Where not even the first line can be printed: exit 2 and one line, before anything is loaded."""
    with Path("/dev/full").open("wb") as full:
        code, err = start("--num-samples", "1", stdout=full.fileno()).finish()

    assert code == 2
    assert err.startswith("eval-scivqa: error: the standard output must be writable, got")
    assert err.count("\n") == 1


def test_bad_usage_comes_at_once(tmp_path: Path) -> None:
    """A wrong flag is one line and exit 2, before torch is even imported."""
    script = "import sys; from llava.eval.eval_scivqa import main; sys.exit(main() + 90 * ('torch' in sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", script, "--num-chunks", "0"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": PYTHON_PATH},
        capture_output=True,
        timeout=60,
        check=False,
    )

    assert run.returncode == 2
    assert run.stderr.startswith(b"eval-scivqa: error: argument --num-chunks: ")
    assert run.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("name", "main"),
    [("eval-scivqa", eval_scivqa.main), ("custom-selection-inference", custom_selection_inference.main)],
)
def test_console_scripts_are_installed(name: str, main: object) -> None:
    """The names in the README start these functions."""
    (script,) = entry_points(group="console_scripts", name=name)

    assert script.load() is main
