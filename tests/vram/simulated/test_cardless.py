"""The simulation beside PyTorch's own CUDA code, as `python -m benchmarks.cardless` found it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cardless.operations import measured, operations
from vram.cards import find_card
from vram.simulated import context
from vram.simulated.context import SimulatedCuda

ROOT = Path(__file__).parents[3]
EVIDENCE = sorted((ROOT / "ci" / "evidence").glob("cardless-*.json"))


RECORDS: list[dict[str, Any]] = [json.loads(path.read_text(encoding="utf-8")) for path in EVIDENCE]


@pytest.fixture(params=range(len(EVIDENCE)), ids=[path.stem for path in EVIDENCE])
def evidence(request: pytest.FixtureRequest) -> dict[str, Any]:
    return RECORDS[request.param]


def test_there_is_evidence_of_cards_of_several_kinds() -> None:
    assert len(EVIDENCE) >= 2


def differs_by_card(name: str) -> bool:
    """Whether cards or releases of torch allocate otherwise for an operation, or the simulation on any of them."""
    figures = [record["operations"].get(name) for record in RECORDS]
    return any(name in record["different"] for record in RECORDS) or any(each != figures[0] for each in figures)


@pytest.mark.filterwarnings("ignore")
def test_operations_hold_what_torch_allocates_for_them(
    evidence: dict[str, Any], monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    """Peak bytes, bytes kept, blocks; but for the few of which the evidence says how they differ.

    A push compares those that differ between cards, and every sixteenth of the others, each on one card by turns; a
    run of everything (--full) all of them on all cards. Takes over 5 s, as these are 150 operations a card.
    """
    everything, turn = pytestconfig.getoption("--full", default=False), RECORDS.index(evidence)
    major, minor = evidence["environment"]["torch"].split(".")[:2]
    monkeypatch.setattr(context, "_VERSION", (int(major), int(minor)))
    recorded, different = evidence["operations"], evidence["different"]
    wrong = {}
    with SimulatedCuda(find_card(evidence["card"]["name"])):
        for position, (name, make) in enumerate(operations()):
            if everything or position % (len(RECORDS) if differs_by_card(name) else 16 * len(RECORDS)) == turn:
                expected = different[name]["simulated"] if name in different else recorded.get(name)
                figures = measured(make)
                if expected is not None and not isinstance(figures, str) and figures != expected:
                    wrong[name] = (figures, expected)

    assert wrong == {}


def test_what_differs_is_little(evidence: dict[str, Any]) -> None:
    """A regression of the model shows up as a longer list when the evidence is written anew."""
    assert len(evidence["operations"]) > 2500
    assert len(evidence["different"]) < len(evidence["operations"]) / 50


def test_each_peak_of_the_model_and_each_choice_of_a_kernel_is_the_same(evidence: dict[str, Any]) -> None:
    assert evidence["model"] == "7b"
    assert [row for row in evidence["peaks"] if row["error"]] == []
    assert [row for row in evidence["kernels"] if row["predicted"] != row["measured"]] == []


def test_each_architecture_takes_as_much_as_with_torch(evidence: dict[str, Any]) -> None:
    assert len(evidence["models"]) > 20
    assert {name: both for name, both in evidence["models"].items() if both["torch"] != both["simulated"]} == {}


def cardless(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.cardless", *arguments]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch was built with CUDA")
def test_without_a_torch_for_cuda_it_says_so(forked: None) -> None:
    ended = cardless()

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "cardless: needs a torch that was built with CUDA\n"


def test_samples_are_asked_on_the_runtime_alone(forked: None) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.cardless.samples"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.endswith("python -m benchmarks.cardless -- -m benchmarks.cardless.samples\n")


OUT_OF_MEMORY = """
import torch
kept = torch.zeros(3 << 20, device="cuda")
try:
    torch.zeros(30 << 30, device="cuda")
except torch.OutOfMemoryError as error:
    print(torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), torch.cuda.mem_get_info(), error)
"""


@pytest.mark.skipif(torch.version.cuda is None, reason="torch was built without CUDA")
def test_torch_runs_on_a_card_that_is_not_there_and_out_of_its_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """In the words of the simulation, which were taken from cards."""
    ended = cardless("--card", "A100-40", "--", "-c", OUT_OF_MEMORY)
    with SimulatedCuda("A100-40"):
        exec(OUT_OF_MEMORY)  # noqa: S102

    assert ended.returncode == 0, ended.stderr
    printed = re.sub(
        r"Including non-PyTorch .*? memory in use\. ", "", capsys.readouterr().out
    )  # which only NVML knows
    assert ended.stdout == printed
