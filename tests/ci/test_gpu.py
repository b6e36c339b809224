"""`ci/gpu`: what can be tried of it without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import ATTENTIONS, TOKENS, compared, differences
from llava.modes import MODES

ROOT = Path(__file__).parents[2]


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    ended = run("bash", "ci/gpu", OUT=str(tmp_path / "out"), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.strip() == "ci/gpu: error: needs a CUDA device, and torch sees none"
    assert not list((tmp_path / "out").iterdir())


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, object]]:
    """What is printed, and the evidence, with a second simulation in the card's place."""
    folder = tmp_path_factory.mktemp("evidence")
    options = ("--rehearse", "H200", "--model", "tiny", "--output-folder", str(folder))
    ended = run(sys.executable, "benchmarks/gpu.py", *options)
    assert ended.returncode == 0, ended.stderr
    (written,) = folder.iterdir()
    return ended.stdout, json.loads(written.read_text(encoding="utf-8"))


def test_each_mode_is_compared_at_prefill_and_decode_with_both_kinds_of_attention(
    rehearsed: tuple[str, dict[str, object]],
) -> None:
    printed, evidence = rehearsed
    expected = {f"{attention}, {mode}, {what}" for attention in ATTENTIONS for mode in MODES for what in TOKENS}
    expected |= {f"{attention}, weights" for attention in ATTENTIONS}

    rows = evidence["peaks"]
    assert isinstance(rows, list)
    assert {(row["what"], row["figure"]) for row in rows} == {
        (what, figure) for what in expected for figure in ("allocated", "reserved")
    }
    assert all(f"{what} " in printed for what in expected)


def test_a_card_that_does_as_simulated_differs_in_nothing(rehearsed: tuple[str, dict[str, object]]) -> None:
    """Of the second simulation, which starts where the first has left the process."""
    _, evidence = rehearsed

    assert [row for row in evidence["peaks"] if row["error"]] == []  # type: ignore[attr-defined]
    assert evidence["differences"] == []


def test_evidence_of_a_rehearsal_says_that_it_is_one_and_claims_no_measurement_on_a_gpu(
    rehearsed: tuple[str, dict[str, object]],
) -> None:
    _, evidence = rehearsed

    assert evidence["rehearsal"] is True
    assert evidence["context_bytes"] is None
    assert [evidence[part] for part in ("seconds", "judged", "kernels")] == [{}, [], []]


def test_an_error_is_a_share_of_what_was_measured() -> None:
    figures = {"sdpa, weights": {"allocated": 201}}

    (row,) = compared(figures, {"sdpa, weights": {"allocated": 200}})

    assert (row["predicted_bytes"], row["measured_bytes"]) == (201, 200)
    assert row["error"] == pytest.approx(0.005)


def test_differences_are_told_with_the_line_that_asked_and_the_largest_first() -> None:
    card = {"sdpa, baseline": {512: ["a.py:1"], 1024: ["a.py:2", "a.py:3"]}}
    simulated = {"sdpa, baseline": {512: ["b.py:1"], 1024: ["b.py:2"], 4096: ["b.py:4"]}}

    rows = differences(card, simulated)

    assert [(row["bytes"], row["card"], row["simulated"], row["line"]) for row in rows] == [
        (4096, 0, 1, "b.py:4"),
        (1024, 2, 1, "a.py:3"),
    ]
