"""PyTorch's samples of its own operations and their backward passes, as `benchmarks.cardless.samples` found them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
PATHS = sorted((ROOT / "ci" / "evidence").glob("samples-*.json"))
RECORDS: list[dict[str, Any]] = [json.loads(path.read_text(encoding="utf-8")) for path in PATHS]
EVERY = 360  # operation that a push compares in each direction; all of them with --full
PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")
from benchmarks.cardless.samples import unlike_recorded
from vram.cards import find_card
found = {}
for path in sys.argv[2:]:
    with open(path, encoding="utf-8") as file:
        recorded = json.load(file)
    names = list(recorded["operations"])[:: int(sys.argv[1])]
    found |= unlike_recorded(recorded, find_card(recorded["card"]["name"]), names)
print(json.dumps(found))
"""


def test_samples_hold_what_torch_allocates_for_them(pytestconfig: pytest.Config, forked: None) -> None:
    """Bytes at the peak and kept, blocks, and reserved bytes of backward passes; but for those that differ.

    All in one process of its own, as PyTorch's list of operations takes settings away from the process that imports it.
    That list alone takes its 5 s.
    """
    everything = pytestconfig.getoption("--full", default=False)
    command = [sys.executable, "-c", PROGRAM, str(1 if everything else EVERY), *map(str, PATHS)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == {}


def test_nearly_all_samples_are_equal_and_each_other_one_has_its_cause() -> None:
    """Refusals are sentences that name a way out, and no sample differs without a known cause."""
    assert {record["direction"] for record in RECORDS} == {"forward", "backward"}
    for record in RECORDS:
        assert record["samples"] > 7000
        assert record["equal"] >= 0.97 * record["samples"]
        assert "" not in record["different"]
