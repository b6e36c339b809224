"""Training steps of whole models beside PyTorch's own CUDA code, as `benchmarks.cardless.training` found them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cardless import training
from vram.cards import find_card
from vram.simulated.context import SimulatedCuda

ROOT = Path(__file__).parents[3]
RECORDS: list[dict[str, Any]] = [
    json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "ci" / "evidence").glob("training-*.json"))
]
# A checkpoint, autocast, channels last and gradients of gradients, on every push; the others with --full.
EACH_TIME = (
    "llama, checkpointed, reentrant",
    "unet, channels last, autocast",
    "critic with a gradient penalty",
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("record", RECORDS, ids=[record["card"]["name"] for record in RECORDS])
def test_steps_hold_what_torch_allocates_for_them(record: dict[str, Any], pytestconfig: pytest.Config) -> None:
    """Peaks until the optimizer and of all, and what stays: allocated, requested, reserved; to the byte.

    Not reserved under autocast, which drops its copies in the order of their addresses in main memory. Whole models of
    which each operation is simulated take their 10 s.
    """
    pytest.importorskip("peft")
    card = find_card(record["card"]["name"])
    if pytestconfig.getoption("--full", default=False):
        names, ours = tuple(record["steps"]), training.all_measured(SimulatedCuda(card), ())
    else:
        # One after the other, fewer steps are another program: the order in which gradients of gradients are made
        # depends, on a card too, on how many nodes each thread has made before.
        names, ours = EACH_TIME, {}
        for name in names:
            ours |= training.all_measured(SimulatedCuda(card), [name])
    assert {name: _repeatable(name, ours[name]) for name in names} == {
        name: _repeatable(name, record["steps"][name]) for name in names
    }


def _repeatable(name: str, figures: dict[str, list[int]]) -> dict[str, list[int]]:
    return {figure: each[:2] if "autocast" in name else each for figure, each in figures.items()}


def test_steps_of_all_kinds_are_equal() -> None:
    """In bytes that are allocated or requested, all; what is reserved differs where a cache ends in another order."""
    for record in RECORDS:
        assert len(record["steps"]) >= 20
        for sides in record["different"].values():
            for name in training.FIGURES:
                assert sides["torch"][name][:2] == sides["simulated"][name][:2]
