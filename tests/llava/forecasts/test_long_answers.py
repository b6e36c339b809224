"""Forecasts of long and of repeated answers, beside those that are simulated whole; and the incident."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from himap import HimapLlavaConfig
from llava.answer_traces import AnswerTraces, Prompt, Workload
from llava.eval.forecast_memory import main
from llava.forecast import Forecast
from llava.forecast_config import config_of
from llava.shapes import SHAPES
from tests.llava.forecasts.conftest import TINY, forecast, with_layers, write_config, write_original_7b
from vram.cards import find_card
from vram.simulated.repeated_layers import RepeatedLayers

TWENTY = ["--samples", "20", "--answers", "2,2,5"]


pytestmark = pytest.mark.filterwarnings("ignore:simulated CUDA is tested with torch")


@pytest.mark.full
def test_what_comes_after_the_end_is_not_simulated() -> None:
    """An answer that outgrows the card by itself: its traces end soon after, and it dies within them.

    On every push `test_what_was_cut_at_the_card_s_end_names_no_larger_card` stops as early.
    """
    card = find_card("570MiB")
    workload = Workload("tiny", "baseline", card, attention="eager", batch=16, use_cache=False, keep_attentions=True)
    answers = AnswerTraces(workload, config_of("tiny"))
    forecast = Forecast(answers)
    died = forecast.answer(Prompt(115), 400)
    assert "out of memory" in died.out_of_memory
    assert len(died.tokens) < len(list(answers.of(Prompt(115), 400))) < 100


def test_settings_of_a_mode_are_forecast(
    tmp_path: Path, plain: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """With aggregates alone in the cache less is alive at each token; the first line has the flags that were set, the
    file all of them, and one warning those of other modes."""
    settings = ("--custom-drop", "--custom-kept-tokens", "5", "--custom-agg-layer", "1")
    others = ("--custom-first-index", "3", "--sys-length", "9")
    dropped = forecast(tmp_path, "--mode", "custom-tome", *settings, *others)

    assert dropped["samples"][0]["tokens"][1] < plain["samples"][0]["tokens"][1]
    flags = dropped["mode_flags"]
    assert (flags["custom_drop"], flags["custom_kept_tokens"], flags["custom_agg_layer"]) == (True, 5, 1)
    printed = capsys.readouterr()
    assert printed.out.startswith(
        "tiny, custom-tome (custom_kept_tokens 5, custom_agg_layer 1, custom_drop True), float16"
    )
    warning = "these options do nothing in mode custom-tome: --sys-length, --custom-first-index"
    assert printed.err == f"forecast-memory: warning: {warning}\n"


@pytest.mark.parametrize(
    ("mode", "attention"),
    [
        pytest.param("baseline", "eager", marks=pytest.mark.full),
        ("himap", "sdpa"),
        pytest.param("custom-fps", "sdpa", marks=pytest.mark.full),
    ],
)
def test_a_long_answer_is_what_its_every_step_is(
    tmp_path: Path, short_context: str, mode: str, attention: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Put together from its first and last steps: every figure, at every token, and the holders; and it is said, with
    the most tokens of an answer, which are not known of every step.

    Takes long, as 16 steps are simulated, and those at either end.
    """
    arguments = ("--model", short_context, "--mode", mode, "--attn", attention, "--answers", "2,16")
    short = forecast(tmp_path, *arguments)
    out = capsys.readouterr().out
    assert "an answer may have all 141 tokens that the context of 256 leaves" in out
    assert "put together from their first and last steps, as sizes are linear: 1" in out
    stepwise = forecast(tmp_path, *arguments, "--every-step")
    assert "put together" not in capsys.readouterr().out
    assert (short["most_tokens"], stepwise["most_tokens"]) == (141, None)
    assert (short["interpolated"], stepwise["interpolated"]) == (1, 0)
    assert short["attention"] == attention
    assert short["samples"] == stepwise["samples"]
    assert [len(sample["tokens"]) for sample in short["samples"]] == [2, 16]


def test_most_tokens_of_an_answer_fit_and_one_more_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Played to the token it dies at, which bytes a token, without peaks and fragments, put too far.

    Takes over 5 s: first and last steps are simulated, once for both, and 207 of 64 answers are played three times.
    """
    simulated: list[AnswerTraces] = []

    def once(workload: Workload, config: HimapLlavaConfig) -> AnswerTraces:
        simulated[:] = simulated or [AnswerTraces(workload, config)]
        return simulated[0]

    monkeypatch.setattr("llava.eval.forecasting.AnswerTraces", once)
    monkeypatch.setitem(SHAPES, "tiny", with_layers(SHAPES["tiny"], 4, 3))
    model = write_config(tmp_path / "model", max_position_embeddings=512)
    arguments = ["--model", model, "--batch", "64", "--card", "600MiB"]
    path = tmp_path / "forecast.json"
    assert main([*arguments, "--answers", "206", "--output-file", str(path)]) == 0
    assert "an answer to 115 tokens may have 206 on this card; the next is out of memory" in capsys.readouterr().out
    read = json.loads(path.read_text())
    assert (read["most_tokens"], read["token_bytes"], read["out_of_memory"]) == (206, 64 * 2**11, False)
    assert main([*arguments, "--answers", "207", "--output-file", str(path)]) == 1
    read = json.loads(path.read_text())
    assert (read["most_tokens"], read["smallest_card"], read["out_of_memory"]) == (206, "V100-16", True)
    assert "the smallest listed card that fits: V100-16" in capsys.readouterr().out


@pytest.mark.full
def test_the_context_ends_an_answer_that_the_card_does_not(
    short_context: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a large card a tiny model answers until its context is full; that it was not simulated whole is said.

    On every push `test_a_long_answer_is_what_its_every_step_is` has it in mode himap.
    """
    assert main([*TINY, "--model", short_context, "--answers", "15"]) == 0
    out = capsys.readouterr().out
    assert "a token adds 1.00 KiB of keys and values" in out
    assert "an answer may have all 141 tokens that the context of 256 leaves" in out
    assert "put together from their first and last steps, as sizes are linear: 1" in out


@pytest.mark.full
@pytest.mark.parametrize("option", ["--no-cache", "--every-step"])
def test_an_answer_s_most_tokens_are_known_only_where_put_together(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else thousands of steps would have to be simulated, or a guess be made: all 15 were simulated.

    Takes over 5 s, as 15 steps are the fewest of a long answer. On every push
    `test_a_long_answer_is_what_its_every_step_is` has it of every step.
    """
    model = write_config(tmp_path / "short", max_position_embeddings=256, num_hidden_layers=1)
    read = forecast(tmp_path, "--model", model, "--answers", "15", option)
    assert read["most_tokens"] is None
    assert (read["token_bytes"] is None) == (option == "--no-cache")
    assert "put together" not in capsys.readouterr().out


def test_repeated_answers_need_what_simulated_ones_do(tmp_path: Path) -> None:
    """`--samples` plays what was simulated again: the figures of a run that simulates each."""
    repeated = forecast(tmp_path, "--mode", "himap", "--answers", "1,2", "--samples", "6")["samples"]
    each = forecast(tmp_path, "--mode", "himap", "--answers", "1,2,1,2,1,2")["samples"]
    assert repeated == each


@pytest.fixture
def incident(pytestconfig: pytest.Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """7B, the card and the prompt of the incident; without --full 2 of its 32 layers, and 2 of its tower's 24, on a
    card as much too small.

    With its context of 4,096 tokens, the longest answer would be replayed too.
    """
    layers, card = 32, "24GiB"
    if not pytestconfig.getoption("--full"):
        layers, card = 2, "3100 MiB"
        monkeypatch.setitem(SHAPES, "7b", with_layers(SHAPES["7b"], layers, 2))
    model = write_original_7b(tmp_path / "7b", max_position_embeddings=700, num_hidden_layers=layers)
    return ["--model", model, "--card", card, "--prompt-tokens", "627"]


def test_a_hundred_samples_of_our_programs_fit(
    incident: list[str], pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the card and with the answers that the incident died of; each distinct answer is simulated once.

    Without --full twenty samples, and no answer as long as the last of the incident's.
    """
    options, more = (["--samples", "104"], 92) if pytestconfig.getoption("--full") else (TWENTY, 8)
    assert main([*incident, *options]) == 0
    out = capsys.readouterr().out
    assert f"and {more} more, none with a higher peak" in out
    assert "the same again: nothing more stays behind" in out


def test_the_incident_is_replayed(
    incident: list[str], pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    """The original call, answers of 2, 2, 5, 24 tokens: dead in sample 3, as was reported on a card of 24 GiB.

    Takes long, as each token is a pass over the whole prompt.
    """
    assert main([*incident, "--keep-attentions", "--answers", "2,2,5,24"]) == 1
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.split()[0].isdigit()]
    assert [row.split()[0] for row in rows] == ["0", "1", "2", "3"]
    assert ["out of memory" in row for row in rows] == [False, False, False, True]
    assert "sample 3: CUDA out of memory. Tried to allocate" in out
    if pytestconfig.getoption("--full"):  # the whole model: as docs/incident.md shows it
        page = (Path(__file__).parents[3] / "docs" / "incident.md").read_text(encoding="utf-8")
        assert all(row in page for row in rows)


@pytest.mark.full
def test_a_prompt_that_dies_as_the_incident_s_did(capsys: pytest.CaptureFixture[str]) -> None:
    """On a card with just too little room: at the fp32 softmax of 32 x 627 x 627, asking for the reported 48.00 MiB.

    On every push test_figures has the same of LLaMA alone, and `test_the_incident_is_replayed` the program's words.
    """
    arguments = ["--model", "7b", "--attn", "eager", "--prompt-tokens", "627", "--answers", "2"]
    assert main([*arguments, "--card", "14110 MiB"]) == 1
    assert "sample 0: CUDA out of memory. Tried to allocate 48.00 MiB." in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["himap", pytest.param("custom-tome", marks=pytest.mark.full)])
def test_layers_that_repeat_request_what_each_would(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the tower and in each group of the decoder's layers: sizes, order and lines of all requests, and the remarks.

    `--every-step` runs every layer. Takes over 5 s, as both are simulated: three groups of layers, in four answers.
    """
    monkeypatch.setitem(SHAPES, "tiny", with_layers(SHAPES["tiny"], 7, 4))
    repeated, repeat = list[None](), RepeatedLayers._repeat

    def counting(*arguments: Any) -> Any:
        repeated.append(None)  # the arguments would keep the cache alive
        return repeat(*arguments)

    monkeypatch.setattr(RepeatedLayers, "_repeat", counting)
    found = []
    for every_step in (False, True):
        workload = Workload("tiny", mode, find_card("8GiB"), every_step=every_step)
        answers = AnswerTraces(workload, config_of("tiny"))
        traces = [*answers.of(Prompt(115), 3), *answers.of(Prompt(115), 3)]
        found.append([(each.ops, each.others, each.streams, each.tags) for each in traces] + [answers.remarks])
        assert (len(repeated) >= 2 * (2 + 3)) if not every_step else not repeated
        repeated.clear()
    assert found[0] == found[1]
