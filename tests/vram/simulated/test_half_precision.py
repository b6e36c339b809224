"""Models of transformers in half precision have the figures of PyTorch's own CUDA code (`ci/evidence`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cardless import half_precision
from vram.cards import find_card
from vram.simulated.context import SimulatedCuda

ROOT = Path(__file__).parents[3]
RECORDS: list[dict[str, Any]] = [
    json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "ci" / "evidence").glob("half-precision-*"))
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("record", RECORDS, ids=[record["card"]["name"] for record in RECORDS])
def test_answers_and_steps_take_what_torch_allocates_for_them(
    record: dict[str, Any], pytestconfig: pytest.Config
) -> None:
    """Allocated and requested bytes of two answers and two training steps; one model on a push, all with --full."""
    names = () if pytestconfig.getoption("--full", default=False) else ("vit",)
    ours = half_precision.all_measured(SimulatedCuda(find_card(record["card"]["name"])), names)
    assert ours
    assert {name: half_precision.taken_alone(rows) for name, rows in ours.items()} == {
        name: half_precision.taken_alone(record["models"][name]) for name in ours
    }
    assert not record["different"]
