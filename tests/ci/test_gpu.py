"""`ci/gpu` without a GPU: a rehearsal on a second simulation, and its parts on made figures."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import ATTENTIONS, TOKENS, compared, differences, main
from llava.modes import MODES
from tests.source import PYTHON_PATH, ROOT


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": PYTHON_PATH} | variables
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path, forked: None) -> None:
    ended = run("bash", "ci/gpu", OUT=str(tmp_path / "out"), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.strip() == "ci/gpu: error: needs a CUDA device, and torch sees none"
    assert not list((tmp_path / "out").iterdir())


class Rehearsal(NamedTuple):
    """The options, the text printed, and the evidence."""

    attentions: Sequence[str]
    modes: Sequence[str]
    printed: str
    evidence: dict[str, Any]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Rehearsal:
    """A second simulation in the card's place; with --full each attention and each mode.

    Takes over 5 s, as each token is simulated operation by operation: two without --full; a minute with it.
    """
    folder = tmp_path_factory.mktemp("evidence")
    full = pytestconfig.getoption("--full")
    attentions, modes = (ATTENTIONS, tuple(MODES)) if full else (("sdpa",), ("himap",))
    options = ["--rehearse", "H200", "--model", "tiny", "--output-folder", str(folder)]
    with pytest.MonkeyPatch.context() as patched, redirect_stdout(io.StringIO()) as printed:
        if not full:
            patched.setitem(TOKENS, "4 tokens", 2)
        assert main([*options, "--attentions", *attentions, "--modes", *modes]) == 0
    (written,) = folder.iterdir()
    return Rehearsal(attentions, modes, printed.getvalue(), json.loads(written.read_text(encoding="utf-8")))


def names(attentions: Sequence[str], modes: Sequence[str]) -> set[str]:
    """Every name that peaks must have."""
    answers = {f"{attention}, {mode}, {what}" for attention in attentions for mode in modes for what in TOKENS}
    return answers | {f"{attention}, weights" for attention in attentions}


def test_each_mode_is_compared_at_prefill_and_decode(rehearsal: Rehearsal) -> None:
    """Each row of evidence is printed, and none is missing."""
    expected = names(rehearsal.attentions, rehearsal.modes)
    rows = rehearsal.evidence["peaks"]
    assert {(row["what"], row["figure"]) for row in rows} == {
        (what, figure) for what in expected for figure in ("allocated", "reserved")
    }
    assert all(f"{what} " in rehearsal.printed for what in expected)


def test_each_mode_is_measured_at_prefill_and_decode_with_both_kinds_of_attention(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Made figures, one for each attention, mode and length: each stands under its own name, and none is missing."""
    now = {"attention": "", "what": "weights"}

    def load(_name: str, *, attn_implementation: str, **_: object) -> tuple[None, None, None, None]:
        now.update(attention=attn_implementation, what="weights")
        return None, None, None, None

    def answerer(*_: object, max_new_tokens: int, **__: object) -> SimpleNamespace:
        what = next(what for what, tokens in TOKENS.items() if tokens == max_new_tokens)
        return SimpleNamespace(answer=lambda _question: now.update(what=f"{now['mode']}, {what}"))

    monkeypatch.setattr(gpu, "load_pretrained_model", load)
    monkeypatch.setattr(gpu, "Answerer", answerer)
    monkeypatch.setattr(gpu, "set_mode", lambda _model, mode: now.update(mode=mode))
    monkeypatch.setattr(gpu, "gc", SimpleNamespace(collect=lambda: None))
    monkeypatch.setattr(gpu, "embedded_questions", lambda _count: [SimpleNamespace(image=True)])
    for part in ("allocated", "reserved"):
        figure = lambda part=part: f"{now['attention']}, {now['what']}: {part}"  # noqa: E731
        monkeypatch.setattr(torch.cuda, f"max_memory_{part}", figure)
    for nothing in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, nothing, lambda: None)

    figures = gpu.all_peaks(gpu.Scope("7b"), nullcontext)

    assert figures == {
        name: {part: f"{name}: {part}" for part in ("allocated", "reserved")}
        for name in names(ATTENTIONS, tuple(MODES))
    }


def test_a_card_that_does_as_simulated_differs_in_nothing(rehearsal: Rehearsal) -> None:
    """The second simulation starts where the first has left the process, and allocates the same."""
    assert [row for row in rehearsal.evidence["peaks"] if row["error"]] == []
    assert rehearsal.evidence["differences"] == []


def test_evidence_of_a_rehearsal_says_that_it_is_one_and_claims_no_measurement_on_a_gpu(rehearsal: Rehearsal) -> None:
    evidence = rehearsal.evidence

    assert evidence["rehearsal"] is True
    assert evidence["context_bytes"] is None
    assert [evidence[part] for part in ("seconds", "judged", "kernels")] == [{}, [], []]


def test_an_error_is_a_share_of_what_was_measured() -> None:
    figures = {"sdpa, weights": {"allocated": 201}}

    (row,) = compared(figures, {"sdpa, weights": {"allocated": 200}})

    assert (row["predicted_bytes"], row["measured_bytes"]) == (201, 200)
    assert row["error"] == pytest.approx(0.005)


def test_differences_are_listed_with_the_line_that_allocated_and_the_largest_first() -> None:
    card = {"sdpa, baseline": {512: ["a.py:1"], 1024: ["a.py:2", "a.py:3"]}}
    simulated = {"sdpa, baseline": {512: ["b.py:1"], 1024: ["b.py:2"], 4096: ["b.py:4"]}}

    rows = differences(card, simulated)

    assert [(row["bytes"], row["card"], row["simulated"], row["line"]) for row in rows] == [
        (4096, 0, 1, "b.py:4"),
        (1024, 2, 1, "a.py:3"),
    ]
