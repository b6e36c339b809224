from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO

import pytest

from llava.eval import custom_selection_inference, eval_scivqa

ROOT = Path(__file__).parents[2]


def _start(
    module: str, *argv: str, cwd: Path, stdout: IO[bytes] | int = subprocess.PIPE, **environment: str
) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"} | environment
    return subprocess.Popen(
        [sys.executable, "-m", f"llava.eval.{module}", *argv],
        cwd=cwd,
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        # Where these tests run in a shell's background, SIGINT is ignored, and a child would inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def test_custom_selection_inference_as_a_process(tmp_path: Path) -> None:
    """`python -m` from any folder, warnings as errors: exit 0, results in that folder."""
    process = _start("custom_selection_inference", "--num-samples", "1", cwd=tmp_path)
    out, err = process.communicate(timeout=120)

    assert process.returncode == 0, err.decode()
    assert out.startswith(b"CUSTOM TOKEN SELECTION TECHNIQUE WILL BE USED ------\n")
    assert json.loads((tmp_path / "custom-selection-inference-custom-fps.json").read_text())["complete"]


def test_ctrl_c_in_a_process(tmp_path: Path) -> None:
    """A real SIGINT in the middle: exit 130, the answers so far, one last line, no traceback."""
    process = _start("eval_scivqa", "--max-new-tokens", "60", "--output-file", "r.json", cwd=tmp_path)
    assert process.stderr is not None
    seen = b""
    while b" 1/20" not in seen:
        read = os.read(process.stderr.fileno(), 4096)
        assert read, seen.decode()
        seen += read
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)

    assert process.returncode == 130
    result = json.loads((tmp_path / "r.json").read_text())
    assert not result["complete"]
    assert 1 <= result["total_samples"] < 20
    assert rest.endswith(b"eval-scivqa: error: interrupted\n")
    assert b"Traceback" not in seen + rest
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_a_reader_that_has_gone_costs_nothing_but_its_text(tmp_path: Path) -> None:
    """`| head` closes the pipe: the run goes on, its results are whole, exit 0, and no traceback."""
    with _start("eval_scivqa", "--num-samples", "1", "--output-file", "r.json", cwd=tmp_path) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        err = process.stderr.read()

    assert process.returncode == 0, err.decode()
    assert json.loads((tmp_path / "r.json").read_text())["complete"]
    assert b"Traceback" not in err


def test_a_name_that_the_terminal_can_not_show_is_spelt(tmp_path: Path) -> None:
    """An ASCII terminal and a file with an accent: its escape is printed, exit 0."""
    name = "r\u00e9.json"
    process = _start("eval_scivqa", "--num-samples", "1", "--output-file", name, cwd=tmp_path, PYTHONIOENCODING="ascii")
    out, err = process.communicate(timeout=120)

    assert process.returncode == 0, err.decode()
    assert out.endswith(b"r\\xe9.json\n")
    assert (tmp_path / name).is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_output_is_one_line(tmp_path: Path) -> None:
    """Where not even the first line can be printed: exit 2 and one line, before anything is loaded."""
    with Path("/dev/full").open("wb") as full:
        process = _start("eval_scivqa", "--num-samples", "1", cwd=tmp_path, stdout=full)
    _, err = process.communicate(timeout=120)

    assert process.returncode == 2
    assert err.startswith(b"eval-scivqa: error: the standard output must be writable, got")
    assert err.count(b"\n") == 1


def test_bad_usage_comes_at_once(tmp_path: Path) -> None:
    """A wrong flag is one line and exit 2, before torch is even imported."""
    script = "import sys; from llava.eval.eval_scivqa import main; sys.exit(main() + 90 * ('torch' in sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", script, "--num-chunks", "0"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
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
