"""PyTorch's samples of its own operations and their backward passes, as `benchmarks.cardless.samples` found them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
RECORDS: list[dict[str, Any]] = [
    json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((ROOT / "ci" / "evidence").glob("samples-backward-*.json"))
]
EVERY = 60  # operation that a push compares; all of them with --full
PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
from benchmarks.cardless.samples import unlike_recorded
from vram.cards import find_card
path, card, *names = sys.argv[1:]
with open(path, encoding="utf-8") as file:
    recorded = json.load(file)
print(json.dumps(unlike_recorded(recorded, find_card(card), names or list(recorded["operations"]))))
"""


@pytest.mark.parametrize("record", RECORDS, ids=[record["card"]["name"] for record in RECORDS])
def test_samples_hold_what_torch_allocates_for_them(
    record: dict[str, Any], pytestconfig: pytest.Config, tmp_path: Path, forked: None
) -> None:
    """Forward and backward pass: bytes at the peak and kept, blocks, reserved bytes; but for those that differ.

    In a process of its own, as PyTorch's list of operations takes settings away from the process that imports it. That
    list alone takes its 5 s.
    """
    everything = pytestconfig.getoption("--full", default=False)
    names = [] if everything else list(record["operations"])[::EVERY]
    path = tmp_path / "recorded.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    command = [sys.executable, "-c", PROGRAM, str(path), record["card"]["name"], *names]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == {}


def test_nearly_all_samples_are_equal_and_each_other_one_has_its_cause() -> None:
    """Refusals are sentences that name a way out, and no sample differs without a known cause."""
    for record in RECORDS:
        assert record["samples"] > 3000
        assert record["equal"] >= 0.97 * record["samples"]
        assert "" not in record["different"]
