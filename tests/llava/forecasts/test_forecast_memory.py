"""The program that forecasts memory: what it prints, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest

from llava.answer_traces import Prompt
from llava.eval.forecast_memory import main
from llava.forecast import Forecast, SampleForecast
from llava.forecast_config import config_of
from llava.modes import MODES
from tests.llava.conftest import a_record
from tests.llava.forecasts.conftest import TINY, forecast
from vram.cards import find_card
from vram.simulated.context import TOKEN
from vram.units import format_bytes

pytestmark = pytest.mark.filterwarnings("ignore:simulated CUDA is tested with torch")


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
