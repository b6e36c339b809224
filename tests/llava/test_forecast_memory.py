"""The program that forecasts memory: what it prints, what it refuses, and the incident it replays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval.forecast_memory import main

TINY = ("--model", "tiny", "--answers", "2,3", "--card", "8GiB")
pytestmark = pytest.mark.filterwarnings("ignore:simulated CUDA is tested with torch")


def forecast(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "forecast.json"
    assert main([*TINY, *arguments, "--output-file", str(path)]) == 0
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def test_a_forecast_is_told_with_its_assumptions(capsys: pytest.CaptureFixture[str]) -> None:
    """A row a sample, the biggest holders, what a token adds, the smallest card; and that it is simulated."""
    assert main(list(TINY)) == 0
    out = capsys.readouterr().out
    assert "tiny, baseline, float16, sdpa, KV cache; 1 x 115 prompt tokens; card 8GiB" in out
    assert "simulated: default allocator settings, one stream" in out
    assert "not compared with a GPU yet" in out
    assert [line.split()[:2] for line in out.splitlines() if line[:1].isdigit()] == [["0", "2"], ["1", "3"]]
    assert "the smallest listed card that fits: V100-16" in out


def test_figures_repeat_to_the_byte_and_follow_what_is_asked(tmp_path: Path) -> None:
    """Twice the batch needs more, HiMAP less; each answer of the same length needs the same."""
    plain, again = forecast(tmp_path), forecast(tmp_path)
    assert plain == again
    peak = plain["samples"][0]["peak_bytes"]
    assert forecast(tmp_path, "--batch", "2")["samples"][0]["peak_bytes"] > peak
    assert plain["samples"][1]["live_bytes"] == plain["samples"][0]["live_bytes"]
    assert len(plain["samples"][1]["tokens"]) == 3
    assert forecast(tmp_path, "--attn", "eager")["attention"] == "eager"


def test_kept_attentions_grow_with_every_token(tmp_path: Path) -> None:
    """4 layers x 4 heads x N x N x 2 B a token, as the original kept: more than the KV cache by far."""
    kept = forecast(tmp_path, "--keep-attentions", "--prompt-tokens", "127")
    assert (kept["attention"], kept["use_cache"]) == ("eager", False)
    tokens = kept["samples"][1]["tokens"]
    assert tokens[2] - tokens[1] >= 4 * 4 * 128 * 128 * 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--card", "rtx"), "--card: a card must be one of V100-16"),
        (("--answers", "2,x"), "answers must be numbers of tokens, as in 2,2,5,24"),
        (("--model", "9b"), "the model must be one of tiny, 7b, 13b or a folder"),
        (("--prompt-tokens", "10"), "the prompt must have at least 100 tokens, its image's included, got 10"),
        (("--model", "7b", "--card", "8GiB"), "the card must hold the model's weights at least: CUDA out of memory"),
        (("--mode", "fast"), "invalid choice"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2: the rule, then what came."""
    assert main([*TINY, *arguments]) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


def test_a_folder_needs_a_config_only(tmp_path: Path) -> None:
    """No weights: they have no bytes here anyway."""
    from llava.presets import tiny_folder

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text((tiny_folder() / "config.json").read_text())
    assert forecast(tmp_path, "--model", str(tmp_path / "model"))["samples"] == forecast(tmp_path)["samples"]


def test_the_incident_is_replayed(capsys: pytest.CaptureFixture[str]) -> None:
    """The original call on a card of 24 GiB, answers of 2, 2, 5, 24 tokens: dead in sample 3, as was reported."""
    arguments = ["--model", "7b", "--card", "24GiB", "--keep-attentions", "--prompt-tokens", "627"]
    assert main([*arguments, "--answers", "2,2,5,24"]) == 1
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.split()[0].isdigit()]
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "3"]
    assert ["out of memory" in row for row in rows] == [False, False, False, True]
    assert "sample 3: CUDA out of memory. Tried to allocate" in out
