"""The programs that answer questions: modes, options, and what they say."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Unpack

import pytest
import torch
from PIL import Image

from himap import HimapLlavaForConditionalGeneration
from himap.settings import SELECTION_METHODS
from llava.answering import Answer, Answerer
from llava.builder import Checkpoint
from llava.eval import custom_selection_inference, eval_scivqa, forecast_memory, preparation
from llava.eval.command_line import build_parser
from llava.load_options import LoadOptions
from llava.placement import Placement, placed
from llava.prompting import Prompts
from llava.questions import Question, embedded_questions
from tests.llava.conftest import a_record
from tests.llava.layouts import ORIGINAL, plain_llava, write_base, write_original, write_projector
from tests.llava.layouts import write_json as write_json_file
from tests.llava.programs.conftest import CUSTOM, EVAL, NAMES, PROGRAMS, Main, files_in, read_result


def test_a_mode_without_effect_says_so(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A layer that the model has not: one line before the answers, with the flag, its value and the last layer."""
    assert CUSTOM(["--custom-agg-layer", "99", "--num-samples", "1", "--max-new-tokens", "1"]) == 0
    line = "Mode custom-fps selects nothing: custom_agg_layer is 99, and the decoder's last layer is 3"
    assert capfd.readouterr().out.splitlines()[3] == line


@pytest.mark.share(2)
@pytest.mark.parametrize(
    ("main", "argv", "mode", "technique"),
    [
        (EVAL, [], "baseline", "NO TOKEN PRUNING TECHNIQUE"),
        # As the original's programs: one command line, and a switch more or less.
        (EVAL, ["--sys-length", "35", "--hmap-v-attn-txt-rank", "9"], "baseline", "NO TOKEN PRUNING TECHNIQUE"),
        (EVAL, ["--use-hmap-v"], "himap", "HiMAP TECHNIQUE"),
        (EVAL, ["--use-fast-v"], "fastv", "FastV TECHNIQUE"),
        (CUSTOM, ["--baseline"], "baseline", "NO TOKEN PRUNING TECHNIQUE"),
        (CUSTOM, ["--baseline", "--custom-kept-tokens", "9"], "baseline", "NO TOKEN PRUNING TECHNIQUE"),
        (CUSTOM, [], "custom-fps", "CUSTOM TOKEN SELECTION TECHNIQUE"),
        (CUSTOM, ["--custom-selection-method", "tome"], "custom-tome", "CUSTOM TOKEN SELECTION TECHNIQUE"),
    ],
)
def test_every_mode_answers_the_embedded_default(
    main: Main, argv: list[str], mode: str, technique: str, workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With nothing named: tiny, the embedded questions, the technique said, the figures printed and written."""
    assert main([*argv, "--num-samples", "2"]) == 0

    printed = capfd.readouterr()
    name = f"{NAMES[main]}-{mode}.json"
    assert files_in(workplace) == [name]
    result = read_result(name)
    lines = printed.out.splitlines()
    assert lines[:2] == [f"{technique} WILL BE USED ------", "Model: tiny, on cpu, float32, sdpa attention"]
    assert lines[2].startswith(f"Mode: {mode}")
    assert lines[3] == "The weights are random: answers mean nothing, memory and speed do."
    lines = lines[3:]
    # As the original programs print them.
    assert lines[1:4] == [
        str(result["accuracy"]),
        f"Avg Latency/Example: {result['avg_latency']:.6f}s",
        f"FLOPs Ratio (attn+ffn approx): {100 * result['flops_info']:.2f}%",
    ]
    assert lines[4] == "Questions answered: 2"
    assert [line.partition(":")[0] for line in lines[5:]] == [
        "Accuracy", "Average latency", "FLOPs of a prompt", "Peak memory", "Results"
    ]  # fmt: skip
    assert "2/2" in printed.err
    assert "current=" in printed.err
    assert "peak=" in printed.err
    assert list(result) == [
        "schema", "complete", "mode", "accuracy", "avg_latency", "total_samples", "correct_samples", "flops_info",
        "avg_preparation", "flops_ratio", "judged_by", "unread_samples", "memory", "model_config",
        "questions", "answers",
    ]  # fmt: skip
    assert (result["schema"], result["complete"], result["mode"], result["total_samples"]) == (1, True, mode, 2)
    assert result["avg_latency"] > 0
    assert result["memory"]["peak_bytes"] > 4_000_000  # tiny's weights alone
    assert result["memory"]["source"]
    assert [set(answer) for answer in result["answers"]] == [
        {"id", "prediction", "label", "correct", "seconds", "tokens", "judged_by", "letter", "preparation_seconds",
         "flops_ratio", "flops_info", "place", "prefill_seconds", "cache_bytes"}
    ] * 2  # fmt: skip
    assert [answer["id"] for answer in result["answers"]] == ["embedded-0", "embedded-1"]
    assert {answer["tokens"] for answer in result["answers"]} == {8}
    assert result["model_config"]["max_new_tokens"] == 8


@pytest.mark.share(3)
@pytest.mark.parametrize(
    ("main", "argv", "ignored"),
    [
        (EVAL, "--sys-length 35 --hmap-v-attn-txt-rank 9", "baseline: --sys-length, --hmap-v-attn-txt-rank"),
        (EVAL, "--hmap-v-attn-img-layer 3", "baseline: --hmap-v-attn-img-layer"),
        (EVAL, "--use-fast-v --hmap-v-attn-img-layer 3", "fastv: --hmap-v-attn-img-layer"),
        (CUSTOM, "--baseline --custom-kept-tokens 9 --custom-drop", "baseline: --custom-kept-tokens, --custom-drop"),
        (CUSTOM, "--baseline --custom-selection-method fps", "baseline: --custom-selection-method"),
        (CUSTOM, "--custom-selection-method tome --custom-first-index 0", "custom-tome: --custom-first-index"),
        (EVAL, "--use-hmap-v --hmap-v-attn-txt-rank 9 --hmap-v-attn-img-rank 3", ""),
        (CUSTOM, "--custom-first-index 0 --custom-drop", ""),
        (CUSTOM, "--baseline", ""),
    ],
)
def test_options_that_do_nothing_are_named(
    main: Main, argv: str, ignored: str, answered: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    """One line, before anything else; none where all of them count."""
    answered("A")
    assert main([*argv.split(), "--num-samples", "1"]) == 0

    warnings = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    expected = f"{NAMES[main]}: warning: these options do nothing in mode {ignored}"
    assert warnings == [expected] * bool(ignored)


@pytest.mark.parametrize(
    ("main", "argv", "flags"),
    [
        (
            EVAL,
            "--use-hmap-v --sys-length 35 --img-length 64 --hmap-v-attn-txt-layer 2 --hmap-v-attn-txt-rank 20 "
            "--hmap-v-attn-img-layer 3 --hmap-v-attn-img-rank 5",
            {
                "use_hmap_v": True,
                "hmap_v_sys_length": 35,
                "hmap_v_img_length": 64,
                "hmap_v_attn_txt_layer": 2,
                "hmap_v_attn_txt_rank": 20,
                "hmap_v_attn_img_layer": 3,
                "hmap_v_attn_img_rank": 5,
            },
        ),
        (
            CUSTOM,
            "--custom-sys-length 35 --custom-image-token-length 64 --custom-kept-tokens 9 --custom-agg-layer 0 "
            "--custom-selection-method tome --custom-temperature 0.5 --custom-drop",
            {
                "use_custom_selection": True,
                "custom_sys_length": 35,
                "custom_image_token_length": 64,
                "custom_kept_tokens": 9,
                "custom_agg_layer": 0,
                "custom_selection_method": "tome",
                "custom_temperature": 0.5,
                "custom_first_index": None,
                "custom_drop": True,
            },
        ),
        (
            CUSTOM,
            "--custom-first-index 63",
            {"custom_selection_method": "fps", "custom_first_index": 63, "custom_drop": False},
        ),
    ],
)
def test_every_flag_reaches_the_model(
    main: Main, argv: str, flags: dict[str, Any], monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint
) -> None:
    """Options of the command line are in the model's config when it answers, and what the results say."""
    system = _system_length(checkpoint)
    argv, flags = argv.replace("35", str(system)), {k: system if v == 35 else v for k, v in flags.items()}
    seen: dict[str, Any] = {}

    def answer(self: Answerer, question: Question) -> Answer:
        seen.update({name: getattr(self.model.config, name) for name in flags})
        return Answer("A", 1, 1, 0.25)

    monkeypatch.setattr(Answerer, "answer", answer)
    assert main([*argv.split(), "--num-samples", "1", "--output-file", "out.json"]) == 0

    assert seen == flags
    assert flags.items() <= read_result("out.json")["model_config"].items()


def _system_length(checkpoint: Checkpoint) -> int:
    return Prompts(checkpoint.tokenizer, checkpoint.config).ids(embedded_questions(1)[0]).index(3)


def test_common_flags_reach_the_answerer(monkeypatch: pytest.MonkeyPatch, answered: Callable[..., None]) -> None:
    """Length, letter request, conversation mode, dtype, attention, no-cache and keep-attentions arrive."""
    made: dict[str, Any] = {}
    loaded: list[Placement] = []
    init, load = Answerer.__init__, Checkpoint.load_model

    def spied_init(self: Answerer, *args: Any, **options: Any) -> None:
        made.update(options)
        init(self, *args, **options)

    def spied_load(self: Checkpoint, placement: Placement) -> HimapLlavaForConditionalGeneration:
        loaded.append(placement)
        return load(self, placement)

    monkeypatch.setattr(Answerer, "__init__", spied_init)
    monkeypatch.setattr(Checkpoint, "load_model", spied_load)
    answered("A")
    argv = "--conv-mode v1 --single-pred-prompt --max-new-tokens 5 --no-cache --keep-attentions --num-samples 1"
    argv += " --image-aspect-ratio pad"
    assert EVAL([*argv.split(), "--device", "cpu", "--dtype", "bfloat16", "--attn", "eager"]) == 0

    assert made == {
        "conv_mode": "v1",
        "single_pred_prompt": True,
        "max_new_tokens": 5,
        "use_cache": False,
        "keep_attentions": True,
        "pad_images": True,
    }
    assert loaded == [Placement(torch.device("cpu"), torch.bfloat16, "eager")]


@PROGRAMS
@pytest.mark.parametrize("bits", [8, 4])
def test_8_and_4_bit_reach_the_loader(
    main: Main, bits: int, monkeypatch: pytest.MonkeyPatch, answered: Callable[..., None]
) -> None:
    """Where all is there that they need, the flag is handed on and written down."""
    loaded: LoadOptions = {}

    def spied_placed(**options: Unpack[LoadOptions]) -> Placement:
        loaded.update(options)
        return placed()

    monkeypatch.setattr(preparation, "placed", spied_placed)
    answered("A")
    assert main([f"--load-{bits}bit", "--num-samples", "1", "--device", "cpu", "--output-file", "r.json"]) == 0

    expected = {"load_8bit": bits == 8, "load_4bit": bits == 4}
    assert expected.items() <= loaded.items()
    assert expected.items() <= read_result("r.json")["model_config"].items()


@PROGRAMS
def test_a_projector_and_its_base(
    main: Main, tmp_path: Path, images: Path, write_questions: Callable[..., Path]
) -> None:
    """--model-path and --model-base in the original layout, from the command line to answers."""
    plain = plain_llava()
    projector, base = write_projector(tmp_path / "projector", plain), write_base(tmp_path / "base", plain)
    file = write_questions([a_record(image="good.png")])
    model = ["--model-path", str(projector), "--model-base", str(base), "--output-file", "r.json"]

    assert main([*model, "--question-file", str(file), "--image-folder", str(images), "--max-new-tokens", "2"]) == 0

    result = read_result("r.json")
    assert result["complete"]
    assert result["answers"][0]["tokens"] in (1, 2)
    assert result["model_config"]["model_base"] == str(base)


@pytest.mark.parametrize("main", [EVAL, CUSTOM, forecast_memory.main])
def test_help_names_every_default(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    """Options stand in groups, and each says what happens without it; --version is the distribution's."""
    for flag in ("--help", "--version"):
        with pytest.raises(SystemExit, match=r"^0$"):
            main([flag])
    out = capsys.readouterr().out
    program, _, printed_version = out.splitlines()[-1].partition(" ")
    assert printed_version in (f"{version('himap-vram')}, of himap-vram", "of a source tree, of himap-vram")
    assert out.startswith(f"usage: {program} ")
    general, *groups = re.split(r"\n\n(?=[a-z ]+:\n)", out.rpartition("\n")[0].partition("options:\n")[2])
    assert len(groups) >= 4
    assert re.findall(r"^  (--\w+|-h)", general, re.MULTILINE) == ["-h", "--version"]
    for group in groups:
        for option in re.split(r"\n  (?=--)", group)[1:]:
            assert "(default: " in " ".join(option.split()), option


def test_the_table_of_differences_is_whole(answered: Callable[..., None]) -> None:
    """docs/himap.md names every option and every key of the results."""
    text = (Path(__file__).parents[3] / "docs" / "himap.md").read_text(encoding="utf-8")
    table = text.partition("## The original programs and ours")[2].partition("\n## ")[0]
    parsers = [build_parser(each.PROGRAM) for each in (eval_scivqa, custom_selection_inference)]
    options = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    answered("A")
    assert CUSTOM(["--num-samples", "1", "--output-file", "r.json"]) == 0
    names = options - {"-h", "--help"} | read_result("r.json").keys()

    assert sorted(name for name in names if f"`{name}`" not in table) == []


@pytest.mark.parametrize(
    ("argv", "lines"),
    [
        (
            "--use-hmap-v --hmap-v-attn-txt-rank 9 --dtype bfloat16 --attn eager",
            [
                "HiMAP TECHNIQUE WILL BE USED ------",
                "Model: tiny, on cpu, bfloat16, eager attention",
                "Mode: himap (use_hmap_v True, hmap_v_attn_txt_layer 1, hmap_v_attn_txt_rank 9, "
                "hmap_v_attn_img_layer 2, hmap_v_attn_img_rank 8)",
                "The weights are random: answers mean nothing, memory and speed do.",
            ],
        ),
        (
            "--keep-attentions --dtype auto --model-path {folder}",
            [
                "NO TOKEN PRUNING TECHNIQUE WILL BE USED ------",
                "Model: {folder}, on cpu, its own dtype, eager attention",
                "Mode: baseline",
            ],
        ),
    ],
)
def test_the_beginning_says_what_runs(
    argv: str, lines: list[str], folder: Path, answered: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Model, device, dtype, attention, mode with its flags, before anything is answered; random weights are named."""
    answered("A")
    assert EVAL([*argv.format(folder=folder).split(), "--num-samples", "1", "--device", "cpu"]) == 0

    printed = capsys.readouterr().out.splitlines()
    assert printed[: len(lines)] == [line.format(folder=folder) for line in lines]
    assert printed[len(lines)] in ("0.0", "1.0")  # the accuracy


def test_padding_is_named_and_can_be_had(
    tmp_path: Path, images: Path, write_questions: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint whose config pads images: one line says that they are cropped; --image-aspect-ratio pad pads."""
    folder = write_original(tmp_path / "original", plain_llava())
    Image.new("RGB", (64, 16), (255, 0, 0)).save(images / "wide.png")
    file = write_questions([a_record(image="wide.png")])
    argv = ["--model-path", str(folder), "--question-file", str(file), "--image-folder", str(images)]
    line = "The checkpoint's image_aspect_ratio is pad; images are cropped"
    for flags, is_named in (([], True), (["--image-aspect-ratio", "pad"], False)):
        assert EVAL([*argv, "--max-new-tokens", "1", "--output-file", "r.json", *flags]) == 0
        assert (line in capsys.readouterr().out) is is_named
    assert read_result("r.json")["model_config"]["image_aspect_ratio"] == "pad"
    write_json_file(folder / "config.json", ORIGINAL | {"image_aspect_ratio": "square"})
    assert EVAL([*argv, "--max-new-tokens", "1"]) == 0
    assert line not in capsys.readouterr().out


def test_the_command_line_offers_what_the_library_knows() -> None:
    """Words listed for the parser are the library's own, so neither can change alone."""
    parser = build_parser(custom_selection_inference.PROGRAM)
    methods = next(action.choices for action in parser._actions if action.dest == "custom_selection_method")
    assert methods == SELECTION_METHODS
    assert preparation.EMBEDDED_COUNT == 20
