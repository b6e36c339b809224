"""The simulation beside PyTorch's own CUDA code, as `python -m benchmarks.cardless` found it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cardless.operations import measured, operations
from vram.simulated.cards import find_card
from vram.simulated.context import SimulatedCuda

EVIDENCE = sorted((Path(__file__).parents[3] / "ci" / "evidence").glob("cardless-*.json"))


@pytest.fixture(params=EVIDENCE, ids=lambda path: path.stem, scope="module")
def evidence(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(request.param.read_text(encoding="utf-8"))
    return found


def test_there_is_evidence_of_cards_of_several_kinds() -> None:
    assert len(EVIDENCE) >= 2


@pytest.mark.filterwarnings("ignore")
def test_operations_hold_what_torch_allocates_for_them(evidence: dict[str, Any]) -> None:
    """Bytes at the most, bytes kept, blocks; but for the few of which the evidence says how they differ."""
    recorded, different = evidence["operations"], evidence["different"]
    wrong = {}
    with SimulatedCuda(find_card(evidence["card"]["name"])):
        for name, make in operations():
            expected = different[name]["simulated"] if name in different else recorded.get(name)
            found = measured(make)
            if expected is not None and not isinstance(found, str) and found != expected:
                wrong[name] = (found, expected)

    assert wrong == {}


def test_what_differs_is_little(evidence: dict[str, Any]) -> None:
    """A regression of the model shows up as a longer list when the evidence is written anew."""
    assert len(evidence["operations"]) > 2500
    assert len(evidence["different"]) < len(evidence["operations"]) / 50


def test_each_peak_of_the_model_and_each_choice_of_a_kernel_is_the_same(evidence: dict[str, Any]) -> None:
    assert evidence["model"] == "7b"
    assert [row for row in evidence["peaks"] if row["error"]] == []
    assert [row for row in evidence["kernels"] if row["predicted"] != row["measured"]] == []
