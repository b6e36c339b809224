"""`vram forecast FILE.py:STEP`: what it prints, what it refuses, and that its figures are those of the step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vram.cards import CARDS, find_card
from vram.cli import main

pytestmark = pytest.mark.filterwarnings("ignore:simulated CUDA is tested with torch")

MIB = 2**20
# 8 MiB of weights; a call needs 1 MiB a row of the batch beside them, and as much again while it multiplies.
PLAIN = """
import torch

weight = torch.nn.Parameter(torch.zeros(2**21, device="cuda"))

def step(batch_size=4, tokens=1):
    x = torch.ones(batch_size, tokens, 2**18, device="cuda")
    return x * 2
"""
GROWS = """
import torch

KEPT = []
samples = [1, 2]

def step(mib):
    KEPT.append(torch.ones(mib * 2**18, device="cuda"))
"""


class Project:
    """A folder with one file, and `vram forecast` run on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path, self._capsys = folder / "project_step.py", capsys

    def run(self, source: str, *arguments: str, name: str = "step") -> tuple[int, str, str]:
        """Exit code, output and errors."""
        self.path.write_text(source)
        code = main(["forecast", f"{self.path}:{name}", "--card", "1GiB", *arguments])
        printed = self._capsys.readouterr()
        return code, printed.out, printed.err

    def read(self, source: str, *arguments: str) -> dict[str, Any]:
        """The JSON."""
        read: dict[str, Any] = json.loads(self.run(source, "--json", *arguments)[1])
        return read


@pytest.fixture(autouse=True)
def _smallest_is_a_v100(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller card that is listed one day changes nothing here."""
    listed = [card for card in CARDS if card.total_bytes >= find_card("V100-16").total_bytes]
    monkeypatch.setattr("vram.cards.CARDS", listed)


@pytest.fixture
def project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Project:
    return Project(tmp_path, capsys)


def test_a_step_that_fits(project: Project) -> None:
    """The lines come in the order in which a reader needs them."""
    code, out, err = project.run(PLAIN, "--no-search")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "fits 1GiB (1.00 GiB, compute capability 8.0), 504.00 MiB to spare"
    assert lines[1] == "peak 16.00 MiB, reserved 20.00 MiB, with batch_size 4, tokens 1"
    assert lines[2] == "at the peak, in call 1, 8.00 MiB of it weights:"
    assert sorted(lines[3:6]) == [
        f"  4.00 MiB in 1: {project.path}:7 step",
        f"  4.00 MiB in 1: {project.path}:8 step",
        "  8.00 MiB in 1: the model, and what was there before",
    ]
    assert lines[6] == "the same again: nothing more stays behind, however many calls"
    assert lines[7].startswith("the smallest listed card that fits: V100-16 ")
    assert lines[8].startswith("simulated: default allocator settings")


def test_figures_are_those_of_the_step(project: Project) -> None:
    """Worked out by hand: 8 MiB of weights and 2 x 4 MiB; the largest sizes fit, and one more does not."""
    read = project.read(PLAIN)
    assert (read["peak_bytes"], read["weights_bytes"], read["kept_bytes"]) == (16 * MIB, 8 * MIB, 0)
    assert (read["fits"], read["calls_until_full"], read["out_of_memory"]) == (True, None, "")
    for size in ("batch_size", "tokens"):
        found = read["largest"][size]
        assert found["fails"] == found["fits"] + 1
        assert project.run(PLAIN, "--no-search", "--set", f"{size}={found['fits']}")[0] == 0
        assert project.run(PLAIN, "--no-search", "--set", f"{size}={found['fails']}")[0] == 1


def test_tokens_until_the_card_is_full_are_searched(project: Project) -> None:
    """A card of 524 MiB holds the old cache and the new one, 16 MiB longer, so of 16 tokens and not of 17; the bytes
    that stay at each would put it at 32."""
    source = """
import torch

def answer(new_tokens=2):
    cache = torch.ones(2**22, device="cuda")
    for _ in range(1, new_tokens):
        cache = torch.cat([cache, cache[: 2**22]])
    return cache
"""
    out = project.run(source, name="answer")[1]
    assert "new_tokens 16 is the largest that fits" in out.splitlines()


def test_a_step_that_does_not_fit_says_what_it_needs_and_which_size_does(project: Project) -> None:
    """The figures are those of a card without a limit, and the exit code is 1."""
    code, out, _ = project.run(PLAIN, "--set", "batch_size=400")
    assert code == 1
    lines = out.splitlines()
    assert lines[0] == (
        "does not fit 1GiB (1.00 GiB, compute capability 8.0), out of memory in call 1: 296.00 MiB are missing"
    )
    assert lines[1].startswith("  CUDA out of memory. Tried to allocate 400.00 MiB.")
    assert lines[2] == "peak 808.00 MiB, reserved 820.00 MiB, with batch_size 400, tokens 1"
    assert any(line.startswith("the smallest listed card that fits: V100-16") for line in lines)
    assert any(line.startswith("batch_size 25") and line.endswith(" is the largest that fits") for line in lines)


def test_a_step_that_never_fits(project: Project) -> None:
    """Weights alone are too much: before the first call, and with no size."""
    source = PLAIN.replace("2**21", "2**29")
    code, out, _ = project.run(source)
    assert code == 1
    assert "out of memory before the first call" in out
    assert "no batch_size fits, not even 1" in out


def test_growth_from_call_to_call_fills_the_card(project: Project) -> None:
    """3 MiB each time that both samples are gone through; the first call is in the figures too."""
    read = project.read(GROWS)
    assert (read["kept_bytes"], read["samples"], read["peak_call"]) == (3 * MIB, 2, 6)
    room_bytes = 2**30 - 500 * MIB - read["reserved_bytes"]
    assert read["calls_until_full"] == room_bytes // (3 * MIB) * 2
    out = project.run(GROWS, "--samples", "1")[1]
    assert "the same again: 1.00 MiB more each time; the card is full after 520 calls" in out


def test_what_a_forecast_assumes_and_does_not_count_is_printed(project: Project) -> None:
    """The remarks of `vram.simulated.remarks`, once."""
    source = """
import torch

def step():
    x = torch.nn.functional.conv2d(torch.rand(1, 8, 64, 64, device="cuda"), torch.ones(8, 8, 3, 3, device="cuda"))
    assert x.isfinite().all()
"""
    out = project.run(source)[1]
    assert out.count(f"assumed: all activations are finite, first at {project.path}:6 step") == 1
    assert out.count("not counted: cuDNN's workspace of a convolution, ") == 1


def test_each_forecast_imports_the_project_anew(project: Project) -> None:
    """Modules beside the file too: what they keep on one card is not there on the next."""
    model = "import torch\nCALLS = []\n"
    step = (
        "\ndef step(batch=1):\n    CALLS.append(1)\n    return torch.ones(len(CALLS) * batch, 2**18, device='cuda')\n"
    )
    (project.path.parent / "project_model.py").write_text(model)
    assert project.read(f"from project_model import *\n{step}")["largest"] == project.read(model + step)["largest"]


BAD: dict[str, tuple[str, list[str], str, int]] = {
    "no function": ("def other(): ...", [], "must have a function step, got other", 2),
    "no value": ("def step(image): ...", [], "`image=1`, or put `samples = [...]`", 2),
    "no samples": ("samples = []\ndef step(image): ...", [], "must have at least one, for `image`, got none", 2),
    "no such size": ("def step(batch=1): ...", ["--set", "tokens=2"], "must be one of batch, got tokens", 2),
    "no size": ("def step(): ...", ["--set", "tokens"], "--set must be NAME=N", 2),
    "no card": ("def step(): ...", ["--card", "X9"], "--card: a card must be one of", 2),
    "nothing on the card": ("def step(): ...", [], "must work on the card, got no allocation there", 2),
    "no samples asked": ("def step(): ...", ["--samples", "0"], "--samples must be at least 1, got 0", 2),
    "a syntax error": ("def step(:", [], "SyntaxError at ", 3),
    "an import": ("import no_such_module", [], "project_step.py:1 <module>: No module named 'no_such_module'", 3),
    "an error": ("def step():\n    raise ValueError('it is so')", [], "project_step.py:2 step: it is so", 3),
    "an exit": ("raise SystemExit(4)", [], "SystemExit at ", 3),
    "a generator": ("def step():\n    yield 1", [], "step must do its work before it returns, got a generator", 3),
    "not simulated": (
        "import torch\ndef step():\n    torch.nn.LSTM(2, 2, device='cuda')(torch.ones(1, 1, 2, device='cuda'))",
        [],
        "measure on a GPU",
        3,
    ),
    "a setting by a call": (
        "import torch\ndef step():\n    torch.cuda.set_per_process_memory_fraction(0.5)\n"
        "    return torch.ones(9, device='cuda')",
        [],
        "must not change the allocator's settings by a call: set PYTORCH_ALLOC_CONF",
        2,
    ),
    "not a loss": ("def step(): ...", ["--train"], "a training step must return its loss", 2),
}


@pytest.mark.parametrize(("source", "arguments", "words", "code"), BAD.values(), ids=BAD)
def test_what_can_t_be_forecast_is_one_line(
    source: str, arguments: list[str], words: str, code: int, project: Project
) -> None:
    """With the rule or the line of the step; 2 for bad input, 3 where the step raised."""
    found, out, err = project.run(source, *arguments)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("vram forecast: ")
    assert words in err


def test_a_file_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """And so is a step that names no function."""
    for step, words in (("nowhere.py:step", "must be there, got 'nowhere.py'"), ("a.py", "must be FILE.py:FUNCTION")):
        assert main(["forecast", step]) == 2
        assert words in capsys.readouterr().err


def test_what_the_project_prints_is_not_among_the_figures(project: Project) -> None:
    """JSON stays JSON."""
    assert project.read(PLAIN + "\nprint('hello')\n", "--no-search")["fits"] is True


def test_a_training_step_runs_its_backward_pass(project: Project) -> None:
    """From the second call on the weights' 8 MiB have a gradient of 8; the backward pass makes another, and
    before it that of the product, 1 MiB, whose operand of 4 MiB is gone by then; the loss and its gradient are 512 B.

    Without it: the operand, the product, the loss, and partial sums and their counters while it is summed.
    """
    source = PLAIN.replace("return x * 2", "return (x[0, 0] * weight[: 2**18]).sum()")
    trained = project.read(source, "--train", "--no-search")
    assert (trained["peak_bytes"], trained["peak_call"]) == ((8 + 8 + 8 + 1) * MIB + 2 * 512, 2)
    assert (trained["kept_bytes"], trained["fits"]) == (0, True)
    alone = project.read(source, "--no-search")
    assert (alone["peak_bytes"], alone["peak_call"]) == ((8 + 4 + 1) * MIB + 3 * 512, 1)
