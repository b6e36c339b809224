"""The program that forecasts memory: what it prints, what it refuses, and the incident it replays."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from himap import HimapLlavaConfig
from llava.answer_traces import AnswerTraces, Prompt, Workload
from llava.eval.forecast_memory import main
from llava.forecast import Forecast, SampleForecast
from llava.forecast_config import config_of
from llava.modes import MODES
from llava.presets import tiny_folder
from llava.shapes import SHAPES, Shape
from tests.llava.conftest import a_record
from vram.cards import CARDS, find_card
from vram.simulated.context import TOKEN
from vram.simulated.repeated_layers import RepeatedLayers
from vram.units import format_bytes

TWENTY = ["--samples", "20", "--answers", "2,2,5"]
TINY = ("--model", "tiny", "--answers", "2,3", "--card", "8GiB")
pytestmark = pytest.mark.filterwarnings("ignore:simulated CUDA is tested with torch")


@pytest.fixture(autouse=True, scope="module")
def _smallest_is_a_v100() -> Iterator[None]:
    """A smaller card that is listed one day changes nothing here."""
    listed = [card for card in CARDS if card.total_bytes >= find_card("V100-16").total_bytes]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vram.cards.CARDS", listed)
        yield


@pytest.fixture(autouse=True, scope="module")
def _few_layers() -> Iterator[None]:
    """Tiny with 2 layers in its decoder and 2 in its tower: half the operations to simulate."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(SHAPES, "tiny", with_layers(SHAPES["tiny"], 2, 2))
        yield


def with_layers(shape: Shape, decoder: int, tower: int) -> Shape:
    return replace(
        shape,
        decoder=replace(shape.decoder, num_hidden_layers=decoder),
        tower=replace(shape.tower, num_hidden_layers=tower),
    )


def forecast(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "forecast.json"
    assert main([*TINY, *arguments, "--output-file", str(path)]) == 0
    read: dict[str, Any] = json.loads(path.read_text())
    return read


@pytest.fixture(scope="module")
def plain_printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The forecast of tiny, and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        return forecast(tmp_path_factory.mktemp("plain")), out.getvalue()


@pytest.fixture
def plain(plain_printed: tuple[dict[str, Any], str]) -> dict[str, Any]:
    """The forecast of tiny, to compare others with."""
    return plain_printed[0]


def write_config(folder: Path, changes: dict[str, Any] | None = None, **decoder: Any) -> str:
    """Write tiny's config with `changes`, some to its decoder; returns the new folder's name."""
    raw = json.loads((tiny_folder() / "config.json").read_text()) | (changes or {})
    raw["text_config"] |= {"num_hidden_layers": SHAPES["tiny"].decoder.num_hidden_layers} | decoder
    raw["vision_config"] |= {"num_hidden_layers": SHAPES["tiny"].tower.num_hidden_layers}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    return str(folder)


@pytest.fixture
def short_context(tmp_path: Path) -> str:
    """Tiny with a context of 256 tokens, where the longest answer is soon replayed."""
    return write_config(tmp_path / "short", max_position_embeddings=256)


def test_a_forecast_comes_with_its_assumptions(plain_printed: tuple[dict[str, Any], str]) -> None:
    """A row a sample, the biggest holders, what a token adds, the smallest card; and that it is simulated."""
    _, out = plain_printed
    assert "tiny, baseline, float16, sdpa, KV cache; 1 x 115 prompt tokens; card 8GiB" in out
    assert "simulated: default allocator settings, one stream" in out
    assert "not compared with a GPU yet" in out
    rows = [line.split()[:3] for line in out.splitlines() if line[:1].isdigit()]
    assert rows == [["0", "115", "2"], ["1", "115", "3"]]
    assert "the same again: nothing more stays behind" in out
    assert "the smallest listed card that fits: V100-16" in out


def test_figures_repeat_to_the_byte_and_follow_the_options(tmp_path: Path, plain: dict[str, Any]) -> None:
    """Twice the batch needs more; each answer of the same length needs the same."""
    assert plain == forecast(tmp_path)
    peak = plain["samples"][0]["peak_bytes"]
    assert forecast(tmp_path, "--batch", "2", "--answers", "2")["samples"][0]["peak_bytes"] > peak
    assert plain["samples"][1]["live_bytes"] == plain["samples"][0]["live_bytes"]
    assert len(plain["samples"][1]["tokens"]) == 3


def test_kept_attentions_grow_with_every_token(tmp_path: Path) -> None:
    """2 layers x 4 heads x N x N x 2 B a token, as the original kept: more than the KV cache by far."""
    kept = forecast(tmp_path, "--keep-attentions", "--prompt-tokens", "127")
    assert (kept["attention"], kept["use_cache"]) == ("eager", False)
    tokens = kept["samples"][1]["tokens"]
    assert tokens[2] - tokens[1] >= 2 * 4 * 128 * 128 * 2


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (("--load-4bit",), "bitsandbytes' kernels are not modelled, got --load-4bit (measure it on a card"),
        (("--load-8bit",), "a forecast's weights must not be quantised"),
        (("--card", "rtx"), "--card: a card must be one of V100-16"),
        (("--answers", "1_0"), "must be a whole number of at least 1, got '1_0'"),
        (("--answers", "2,x"), "answers must be numbers of tokens, as in 2,2,5,24"),
        (("--model", "9b"), "the model must be one of tiny, 7b, 13b or a folder"),
        (("--prompt-tokens", "10"), "the prompt must have at least 100 tokens, its image's included, got 10"),
        (("--mode", "fast"), "invalid choice"),
        (("--mode", "himap", "--hmap-v-attn-txt-rank", "65"), "at most the 64 image tokens, got 65"),
        (("--mode", "himap", "--sys-length", "34"), "must be the 35 tokens before the image, got 34"),
        (("--mode", "custom-fps", "--custom-first-index", "64"), "below the 64 image tokens, got 64"),
        (("--prompt-tokens", "120", "--question-file", "q.json"), "--question-file or --prompt-tokens, got both"),
        (("--question-file", "nowhere.json"), "the question file must be readable UTF-8 JSON"),
        (("--snapshot", "snapshot.bin"), "the snapshot must be called *.pickle"),
        (("--snapshot", "nowhere/snapshot.pickle"), "the snapshot must be in an existing folder"),
        (("--batch", "9119"), "a batch must have at most 1,048,576 tokens with its answers, got 9119 x 118"),
        (("--batch", "9" * 30), "a batch must have at most 1,048,576 tokens with its answers"),
        (("--samples", "9" * 30), "--samples: must be at most 1,048,576"),
        (("--card", "9" * 400 + "GiB"), "--card: a card must be one of V100-16"),
        (("--image-folder", "."), "--image-folder must come with --question-file"),
        (("--answers", "9" * 30), "prompt and answer must be at most the context of"),
        (("--answers", "5000"), "prompt and answer must be at most the context of"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[str, ...], rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2: the rule, then what came."""
    assert main([*TINY, *arguments]) == 2
    err = capsys.readouterr().err
    assert rule in err
    assert err.count("\n") == 1


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


def test_weights_that_do_not_fit_are_out_of_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, what they need, and a card that has it; without the advice that is refused."""
    path = tmp_path / "forecast.json"
    assert main(["--model", "7b", "--card", "8GiB", "--answers", "2", "--output-file", str(path)]) == 1
    err = capsys.readouterr().err
    assert "the card must hold the model's weights, 13.17 GiB, got 8GiB" in err
    assert "CUDA out of memory. Tried to allocate" in err
    assert "The smallest listed card that does: V100-16" in err
    assert "expandable_segments" not in err
    assert err.count("\n") == 1
    read = json.loads(path.read_text())
    assert (read["samples"], read["out_of_memory"], read["smallest_card"]) == ([], True, "V100-16")


def test_a_first_token_that_does_not_fit_has_no_timeline(capsys: pytest.CaptureFixture[str]) -> None:
    """No heading of nothing; and the card that the same samples fit, the short ones simulated to their ends."""
    assert main(["--model", "tiny", "--batch", "2000", "--card", "1GiB", "--answers", "2,3"]) == 1
    out = capsys.readouterr().out
    assert "out of memory after 0 tokens" in out
    assert "alive at each of its tokens" not in out
    assert "the smallest listed card that fits: V100-16" in out


def test_what_was_cut_at_the_card_s_end_names_no_larger_card(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a cache what comes after the end is not simulated: no card is guessed."""
    arguments = ["--model", "tiny", "--keep-attentions", "--batch", "16", "--card", "540MiB"]
    assert main([*arguments, "--answers", "100"]) == 1
    assert "the smallest listed card" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "PYTORCH_ALLOC_CONF",
            "expandable_segments:True",
            "simulated CUDA must run with settings of the allocator that it models",
        ),
        (
            "PYTORCH_CUDA_ALLOC_CONF",
            "expandable_segments:True",
            "simulated CUDA must run with settings of the allocator that it models",
        ),
        ("PYTORCH_NO_CUDA_MEMORY_CACHING", "1", "simulated CUDA models a caching allocator"),
    ],
)
def test_settings_that_are_not_modelled_are_refused(
    name: str, value: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is printed, in one line."""
    monkeypatch.setenv(name, value)
    assert main(list(TINY)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{name}: {words}" in err
    assert err.count("\n") == 1


def test_repeated_answers_need_what_simulated_ones_do(tmp_path: Path) -> None:
    """`--samples` plays what was simulated again: the figures of a run that simulates each."""
    repeated = forecast(tmp_path, "--mode", "himap", "--answers", "1,2", "--samples", "6")["samples"]
    each = forecast(tmp_path, "--mode", "himap", "--answers", "1,2,1,2,1,2")["samples"]
    assert repeated == each


def test_prompts_of_a_question_file_are_counted(
    tmp_path: Path, write_questions: Any, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's tokenizer counts; a question without an image is text only."""
    from llava.builder import open_checkpoint
    from llava.prompting import Prompts
    from llava.questions import load_questions

    with_image, text_only = a_record(), a_record(id="t", image=None)
    text_only["conversations"][0]["value"] = "Which of these is a colour?"
    path = write_questions([with_image, text_only])
    read = forecast(tmp_path, "--question-file", str(path), "--image-folder", str(images), "--answers", "2")
    checkpoint = open_checkpoint("tiny")
    prompts = Prompts(checkpoint.tokenizer, checkpoint.config)
    counted = [len(prompts.ids(question)) for question in load_questions(path, images)]
    assert [sample["prompt_tokens"] for sample in read["samples"]] == counted
    lines = {holder["line"] for holder in read["samples"][1]["holders"]}
    assert not any("clip" in line for line in lines)


def test_the_snapshot_is_the_viewer_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Segments and a trace, whose sum is what is alive at the end: the model and cuBLAS's workspace."""
    path = tmp_path / "snapshot.pickle"
    read = forecast(tmp_path, "--snapshot", str(path))
    with path.open("rb") as file:
        snapshot = pickle.load(file)  # noqa: S301 - our own file
    assert f"snapshot for pytorch.org/memory_viz: {path}" in capsys.readouterr().out
    blocks = [block for segment in snapshot["segments"] for block in segment["blocks"]]
    alive = sum(block["requested_size"] for block in blocks if block["state"] == "active_allocated")
    assert 0 <= read["samples"][-1]["live_bytes"] - alive < 512 * len(blocks)
    assert len(snapshot["device_traces"][0]) > 1000
    assert any(
        frame["name"] == "LlamaMLP.forward" for event in snapshot["device_traces"][0] for frame in event["frames"]
    )


def test_one_file_for_two_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """However it is written: the snapshot would replace the figures."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "both.pickle"
    assert main([*TINY, "--output-file", "both.pickle", "--snapshot", str(path)]) == 2
    assert "the snapshot must not be the output file" in capsys.readouterr().err
    assert not path.exists()


def run(stdout: IO[str], *arguments: str) -> int:
    """The program's exit code; processes of their own are in test_program_processes, and print by the same function."""
    with contextlib.redirect_stdout(stdout):
        return main([*TINY, "--answers", "1", *arguments])


def test_a_closed_pipe_is_no_fault(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`| head -1` has read enough: the file is written, and the exit code is the forecast's."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stdout:
        assert run(stdout, "--output-file", str(tmp_path / "forecast.json")) == 0
    assert capfd.readouterr().err == ""
    assert len(json.loads((tmp_path / "forecast.json").read_text())["samples"]) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    """Where the output can't be written."""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        assert run(full) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "the standard output must be writable, got" in err


def test_a_name_that_the_terminal_can_t_print_is_no_fault(tmp_path: Path) -> None:
    """It is escaped."""
    path = tmp_path / "\u00fc\u4e2d.pickle"
    with (tmp_path / "out").open("w", encoding="ascii") as stdout:
        assert run(stdout, "--snapshot", str(path)) == 0
    assert path.exists()
    assert "\\xfc\\u4e2d.pickle" in (tmp_path / "out").read_text()


def write_original_7b(folder: Path, **changes: Any) -> str:
    """Write liuhaotian/llava-v1.5-7b's config.json with `changes`; returns the new folder's name."""
    config = {
        "model_type": "llava_llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "mm_hidden_size": 1024,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "torch_dtype": "float16",
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | changes))
    return str(folder)


def test_an_original_folder_needs_a_config_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives the preset's figures, as its tower is the known CLIP; both have 2 layers here, soon simulated."""
    monkeypatch.setitem(SHAPES, "7b", with_layers(SHAPES["7b"], 2, 2))
    figures = [
        forecast(tmp_path, "--model", model, "--answers", "1", "--card", "24GiB")["samples"][0]["peak_bytes"]
        for model in (write_original_7b(tmp_path / "llava-v1.5-7b", num_hidden_layers=2), "7b")
    ]
    assert figures[0] == figures[1]


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


@pytest.mark.full
def test_a_folder_needs_a_config_only(tmp_path: Path, plain: dict[str, Any]) -> None:
    """No weights: they have no bytes here anyway. On every push the folder of
    `test_assumed_tokens_are_neither_the_image_nor_an_end` has a config only, and the same figures.
    """
    model = write_config(tmp_path / "model")
    assert forecast(tmp_path, "--model", model)["samples"] == plain["samples"]


def test_a_quantised_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights would be counted as if they were not."""
    model = write_config(tmp_path / "model", {"quantization_config": {"quant_method": "awq"}})
    assert main([*TINY, "--model", model]) == 2
    assert "must have no quantization_config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("text_config", "num_hidden_layers", -1),
        ("text_config", "num_hidden_layers", 0),
        ("text_config", "hidden_size", -64),
        ("text_config", "intermediate_size", 0),
        ("text_config", "head_dim", 0),
        ("text_config", "pad_token_id", 10**6),
        ("text_config", "rope_type", "nope"),
        ("text_config", "rope_type", "longrope"),
        ("vision_config", "num_hidden_layers", 0),
        ("vision_config", "intermediate_size", 0),
        ("vision_config", "num_channels", 0),
        ("text_config", "num_key_value_heads", 3),
        ("text_config", "hidden_act", "nope"),
        ("vision_config", "patch_size", 0),
        ("vision_config", "image_size", 1),
        ("", "vision_feature_layer", -9),
        ("", "vision_feature_layer", []),
        ("", "projector_hidden_act", "nope"),
        ("", "image_token_index", 10**6),
        ("", "image_token_index", -1),
    ],
)
def test_a_config_that_makes_no_model_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, name: str, value: object
) -> None:
    """Exit code 2, with the config's own name of what is wrong and the folder; no traceback."""
    raw = json.loads((tiny_folder() / "config.json").read_text())
    if name == "rope_type":
        factors = {"short_factor": [1] * 8, "long_factor": [1] * 8, "factor": 2.0}
        raw[part]["rope_parameters"] = {"rope_type": value, "rope_theta": 10000.0, **factors}
    else:
        (raw[part] if part else raw)[name] = value
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    assert main([*TINY, "--model", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert ("activations" if name.endswith("_act") else name) in err
    assert str(folder)[-40:] in err


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vocab_size", 10**12, "must have at most 1,099,511,627,776 parameters, got "),
        ("hidden_size", 2**62, "must have a whole and fitting config.json"),
    ],
)
def test_a_model_beyond_every_card_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: int, message: str
) -> None:
    """Nor does torch's own out of memory, or its overflow, end in a traceback: exit code 2."""
    assert main([*TINY, "--model", write_config(tmp_path / "model", **{name: value})]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_assumed_tokens_are_neither_the_image_nor_an_end(tmp_path: Path, plain: dict[str, Any]) -> None:
    """A config whose ids are those assumed gives the same figures as any other."""
    model = write_config(tmp_path / "model", {"image_token_index": 1}, eos_token_id=TOKEN)
    assert forecast(tmp_path, "--model", model)["samples"] == plain["samples"]


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_counted_once(tied: bool) -> None:
    """As many parameters as transformers' own model has."""
    import copy

    import torch
    from transformers import LlavaForConditionalGeneration

    from llava.checkpoint import empty_model

    config = config_of("tiny")
    config.tie_word_embeddings = tied
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(copy.deepcopy(config))
    ours = empty_model(config, torch.device("meta"))
    assert sum(each.nbytes for each in ours.parameters()) == sum(each.nbytes for each in theirs.parameters())


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
        page = (Path(__file__).parents[2] / "docs" / "incident.md").read_text(encoding="utf-8")
        assert all(row in page for row in rows)


@pytest.mark.full
def test_a_prompt_that_dies_as_the_incident_s_did(capsys: pytest.CaptureFixture[str]) -> None:
    """On a card with just too little room: at the fp32 softmax of 32 x 627 x 627, asking for the reported 48.00 MiB.

    On every push test_figures has the same of LLaMA alone, and `test_the_incident_is_replayed` the program's words.
    """
    arguments = ["--model", "7b", "--attn", "eager", "--prompt-tokens", "627", "--answers", "2"]
    assert main([*arguments, "--card", "14110 MiB"]) == 1
    assert "sample 0: CUDA out of memory. Tried to allocate 48.00 MiB." in capsys.readouterr().out


def test_all_modes_are_forecast_beside_one_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each mode's peak is that of its own forecast; times and accuracy are named as not measured."""
    options = ("--hmap-v-attn-txt-rank", "9", "--batch", "2", "--answers", "2")
    result = forecast(tmp_path, "--mode", "all", *options)
    out = capsys.readouterr().out
    own = forecast(tmp_path, "--mode", "himap", *options)

    assert (result["schema"], result["simulated"], result["mode"]) == (1, True, "all")
    rows = {row["mode"]: row for row in result["modes"]}
    assert [*rows] == [*result["samples"]] == [*MODES]
    assert result["samples"]["himap"] == own["samples"]
    assert rows["himap"]["peak_bytes"] == max(sample["peak_bytes"] for sample in own["samples"])
    assert rows["himap"]["peak_saved_bytes"] == rows["baseline"]["peak_bytes"] - rows["himap"]["peak_bytes"]
    text = config_of("tiny").text_config
    tokens = own["samples"][0]["prompt_tokens"]
    token_bytes = (
        2 * 2 * text.num_key_value_heads * text.head_dim * 2
    )  # keys and values in float16, of 2 prompts, in one layer
    assert rows["baseline"]["cache_bytes"] == 2 * tokens * token_bytes
    assert rows["himap"]["cache_bytes"] == (tokens + tokens - config_of("tiny").image_seq_length + 9) * token_bytes
    assert rows["himap"]["flops_ratio"] < rows["fastv"]["flops_ratio"] < 1 == rows["baseline"]["flops_ratio"]
    assert {(row["prefill_ratio"], row["decode_seconds"], row["accuracy"]) for row in rows.values()} == {(None,) * 3}
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[-2 - len(MODES) : -2]] == [*MODES]
    assert lines[-1] == "not measured here: prefill, decode, accuracy (nothing is computed on a simulated card)"


def test_a_mode_that_does_not_fit_is_out_of_memory_in_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are forecast all the same, and nothing is saved of a peak that is not known; the exit code is 1.

    Each mode's peak is printed before the next mode is forecast.
    """
    answer = Forecast.answer
    printed: dict[str, str] = {}

    def too_much_for_baseline(self: Forecast, prompt: Prompt, tokens: int) -> SampleForecast:
        printed.setdefault(self.answers.workload.mode, capsys.readouterr().out)
        full = "CUDA out of memory." if self.answers.workload.mode == "baseline" else ""
        return replace(answer(self, prompt, tokens), out_of_memory=full)

    monkeypatch.setattr(Forecast, "answer", too_much_for_baseline)
    path = tmp_path / "full.json"

    assert main([*TINY, "--answers", "1,1", "--mode", "all", "--output-file", str(path)]) == 1

    content = json.loads(path.read_text())
    rows = {row["mode"]: row for row in content["modes"]}
    assert (rows["baseline"]["out_of_memory"], rows["baseline"]["peak_bytes"]) == (True, None)
    assert rows["himap"]["out_of_memory"] is False
    assert (rows["himap"]["peak_bytes"] > 0, rows["himap"]["peak_saved_bytes"]) == (True, None)
    assert [len(content["samples"][mode]) for mode in ("baseline", "himap")] == [1, 2]
    assert re.search(r"^baseline +out of memory  +\d", capsys.readouterr().out, re.MULTILINE)
    assert printed["himap"] == "baseline: out of memory in sample 0\n"
    assert re.fullmatch(r"himap: peak \S+ MiB, in sample \d of 2\n", printed["fastv"])


def test_a_snapshot_is_of_one_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused in one line."""
    assert main([*TINY, "--mode", "all", "--snapshot", str(tmp_path / "a.pickle")]) == 2
    assert capsys.readouterr().err == "forecast-memory: error: --snapshot must come with one mode, got --mode all\n"


def test_what_is_left_of_the_card_is_said_first_and_what_was_assumed_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model is named as in the other programs; the file has the same figures."""
    path = tmp_path / "forecast.json"
    assert main(["--model-path", "tiny", "--answers", "2", "--card", "8GiB", "--output-file", str(path)]) == 0
    lines, read = capsys.readouterr().out.splitlines(), json.loads(path.read_text())
    (sample,) = read["samples"]
    assert read["spare_bytes"] == (8 * 2**30 - 500 * 2**20) - sample["reserved_bytes"]
    (place,) = (number for number, line in enumerate(lines) if line.startswith("fits 8GiB "))
    assert lines[place].endswith(f", {format_bytes(read['spare_bytes'])} to spare")
    assert lines[place + 1].startswith("at the peak, in sample 0")
    assert f"assumed: argmax chooses index {TOKEN}" in lines[-1]
    assert read["remarks"] == lines[-len(read["remarks"]) :]


def test_a_mode_without_effect_is_a_remark(tmp_path: Path) -> None:
    """More tokens kept than an image has: the file says so, beside the figures of baseline."""
    kept = forecast(tmp_path, "--mode", "custom-fps", "--custom-kept-tokens", "999999", "--answers", "1")
    assert (
        "Mode custom-fps selects nothing: custom_kept_tokens is 999999, and an image has 64 tokens" in kept["remarks"]
    )


def test_only_the_samples_asked_for_are_read_and_simulated(
    tmp_path: Path, write_questions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No prompt of a long question file is counted beyond them, and no answer played."""
    from llava.prompting import Prompts

    texts, played = [], set()
    ids, answer = Prompts.ids, Forecast.answer

    def counted(self: Prompts, question: Any) -> Any:
        texts.append(question)
        return ids(self, question)

    def answered(self: Forecast, prompt: Prompt, tokens: int) -> SampleForecast:
        played.add(prompt)
        return answer(self, prompt, tokens)

    monkeypatch.setattr(Prompts, "ids", counted)
    monkeypatch.setattr(Forecast, "answer", answered)
    records = [a_record(id=str(number), image=None) for number in range(9)]
    for number, record in enumerate(records):
        record["conversations"][0]["value"] = "Which? " * (number + 1)
    path = write_questions(records)
    read = forecast(tmp_path, "--question-file", str(path), "--samples", "2", "--answers", "2")
    assert (len(texts), len(played), len(read["samples"])) == (2, 2, 2)


def test_the_card_named_for_weights_that_do_not_fit_has_room_for_the_samples_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One with room for the weights alone is not named."""
    weights = replace(find_card("24GiB"), name="Weights", total_bytes=600 * 2**20)
    monkeypatch.setattr("vram.cards.CARDS", [weights, replace(weights, name="Samples", total_bytes=16 * 2**30)])
    path = tmp_path / "full.json"
    arguments = ["--model", "tiny", "--card", "501MiB", "--answers", "2", "--batch", "2000"]
    assert main([*arguments, "--output-file", str(path)]) == 1
    err = capsys.readouterr().err
    assert "The smallest listed card that does: Samples (16.00 GiB, " in err
    assert err.endswith(", with all samples\n")
    assert json.loads(path.read_text())["smallest_card"] == "Samples"


@pytest.mark.full
def test_a_hub_id_is_known_by_its_config(
    monkeypatch: pytest.MonkeyPatch, plain: dict[str, Any], tmp_path: Path
) -> None:
    """As elsewhere; the weights are not fetched. On every push a folder is known so, and test_original fetches."""
    fetched = []

    def snapshot(name: str, patterns: list[str], *, local_files_only: bool) -> Path:
        fetched.append((name, tuple(patterns)))
        return Path(write_config(tmp_path / f"hub{len(fetched)}"))

    monkeypatch.setattr("llava.folders._snapshot", snapshot)
    assert forecast(tmp_path, "--model-path", "owner/name")["samples"] == plain["samples"]
    assert set(fetched) == {("owner/name", ("*.json", "tokenizer.model"))}


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
