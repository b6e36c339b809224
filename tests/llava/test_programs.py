from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Unpack

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from himap import HimapLlavaForConditionalGeneration
from himap.settings import SELECTION_METHODS
from llava.answering import Answer, Answerer
from llava.builder import Checkpoint
from llava.errors import BadInput
from llava.eval import custom_selection_inference, eval_scivqa, forecast_memory, preparation
from llava.eval.command_line import build_parser
from llava.eval.results import Answered, Summary, summarise, write_json
from llava.load_options import LoadOptions
from llava.placement import Placement, placed
from llava.prompting import Prompts
from llava.questions import Question, embedded_questions

from .conftest import a_record
from .layouts import ORIGINAL, plain_llava, write_base, write_original, write_projector
from .layouts import write_json as write_json_file

Main = Callable[[Sequence[str]], int]
EVAL, CUSTOM = eval_scivqa.main, custom_selection_inference.main
PROGRAMS = pytest.mark.parametrize("main", [EVAL, CUSTOM], ids=["eval-scivqa", "custom-selection-inference"])
NAMES = {EVAL: "eval-scivqa", CUSTOM: "custom-selection-inference"}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs write into the current folder by default."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights is a fault."""

    def load(*args: Any, **options: Any) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(Checkpoint, "load_model", load)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Answers at once, without a model: `answered("A", error)` answers "A", then raises `error`."""

    def script(*steps: str | BaseException) -> None:
        coming = iter(steps)

        def answer(self: Answerer, question: Question) -> Answer:
            step = next(coming)
            if isinstance(step, BaseException):
                raise step
            return Answer(step, tokens=2, prompt_tokens=9, seconds=0.25)

        monkeypatch.setattr(Answerer, "answer", answer)

    return script


def _result(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    assert _files(workplace) == [name]
    result = _result(name)
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


def test_runs_repeat_and_modes_differ(workplace: Path) -> None:
    """Two runs of farthest-point selection, which draws at random, give the same answers; another mode does not."""
    state = torch.get_rng_state()
    predictions = []
    for argv in (["--output-file", "1"], ["--output-file", "2"], ["--output-file", "3", "--baseline"]):
        assert CUSTOM([*argv, "--num-samples", "3"]) == 0
        predictions.append([answer["prediction"] for answer in _result(argv[1])["answers"]])
        torch.rand(1)
    assert predictions[0] == predictions[1] != predictions[2]
    torch.set_rng_state(state)
    assert CUSTOM(["--num-samples", "1"]) == 0
    assert torch.equal(torch.get_rng_state(), state)


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
    assert flags.items() <= _result("out.json")["model_config"].items()


def _system_length(checkpoint: Checkpoint) -> int:
    return Prompts(checkpoint.tokenizer, checkpoint.config).ids(embedded_questions(1)[0]).index(3)


@pytest.mark.share(5)
@pytest.mark.parametrize(
    ("main", "argv", "settings"),
    [
        (EVAL, "", {"use_himap": False, "txt_layer": None, "img_layer": None, "txt_rank": None, "img_rank": None}),
        (EVAL, "", {"use_fastv": False, "fast_v_agg_layer": None, "fast_v_attention_rank": None}),
        (EVAL, "--use-fast-v", {"use_himap": False, "use_fastv": True, "fast_v_attention_rank": 32, "txt_rank": None}),
        (
            EVAL,
            "--use-hmap-v --hmap-v-attn-txt-rank 20",
            {"use_himap": True, "txt_layer": 1, "img_layer": 2, "txt_rank": 20, "img_rank": 8},
        ),
        (CUSTOM, "--baseline", {"use_custom_selection": False, "kept_tokens": None, "selection_method": None}),
        (
            CUSTOM,
            "--custom-kept-tokens 9",
            {
                "use_custom_selection": True,
                "kept_tokens": 9,
                "agg_layer": 2,
                "selection_method": "fps",
                "temperature": 0.1,
            },
        ),
    ],
)
def test_results_have_the_original_s_keys(
    main: Main, argv: str, settings: dict[str, Any], answered: Callable[..., None]
) -> None:
    """Every key of the original programs' results, in whatever mode: a script that reads those reads ours."""
    answered("A")
    assert main([*argv.split(), "--num-samples", "1", "--output-file", "r.json"]) == 0

    result = _result("r.json")
    assert {"accuracy", "avg_latency", "total_samples", "correct_samples", "flops_info", "model_config"} <= set(result)
    assert (settings | {"sys_length": None, "img_length": None}).items() <= result["model_config"].items()


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
    assert expected.items() <= _result("r.json")["model_config"].items()


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

    result = _result("r.json")
    assert result["complete"]
    assert result["answers"][0]["tokens"] in (1, 2)
    assert result["model_config"]["model_base"] == str(base)


def test_keep_attentions_costs_memory(workplace: Path) -> None:
    """The old behaviour, end to end: the same answers, a higher peak."""
    assert EVAL(["--num-samples", "2", "--output-file", "plain.json"]) == 0
    assert EVAL(["--num-samples", "2", "--output-file", "kept.json", "--keep-attentions"]) == 0

    plain, kept = _result("plain.json"), _result("kept.json")
    assert [a["prediction"] for a in plain["answers"]] == [a["prediction"] for a in kept["answers"]]
    assert kept["memory"]["peak_bytes"] > plain["memory"]["peak_bytes"] + 8 * 4 * 4 * 4 * 140**2
    assert kept["model_config"]["attn"] == "eager"


@PROGRAMS
def test_accuracy_is_over_the_labelled(
    main: Main, answered: Callable[..., None], write_questions: Callable[..., Path], images: Path
) -> None:
    """A question without a label is answered, but neither right nor wrong."""
    human = {"from": "human", "value": "Which?"}
    file = write_questions(
        [a_record(id=1, image="good.png"), a_record(id=2), a_record(id=3, conversations=[human]), a_record(id=4)]
    )
    answered("A", "B", "A", "A")
    assert main(["--question-file", str(file), "--image-folder", str(images), "--output-file", "r.json"]) == 0

    result = _result("r.json")
    assert (result["accuracy"], result["correct_samples"], result["total_samples"]) == (2 / 3, 2, 4)
    assert [answer["correct"] for answer in result["answers"]] == [True, False, None, True]
    assert result["answers"][2]["label"] is None


def test_figures_of_nothing_are_absent() -> None:
    """No answers, or no labels: None, not 0."""
    assert summarise([]) == Summary(None, None, 0, 0, None, None, None, {}, 0)
    assert summarise([Answered("1", "A", None, None, 0.5, 1)]) == Summary(None, 0.5, 1, 0, None, None, None, {}, 0)


def test_latency_is_that_of_generate(monkeypatch: pytest.MonkeyPatch, answered: Callable[..., None]) -> None:
    """The clock runs around generate alone, as in the original; all else of an answer is preparation."""
    now = itertools.count(step=10.0)  # 10 s between any two looks at the clock
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    answerer_generate = Answerer._generate

    def generate(self: Answerer, inputs: dict[str, Any]) -> torch.Tensor:
        time.perf_counter()  # it takes 10 s more
        return answerer_generate(self, inputs)

    monkeypatch.setattr(Answerer, "_generate", generate)
    monkeypatch.setattr("llava.eval.loop.tqdm", lambda places, **_: SilentBar(places))
    assert EVAL(["--num-samples", "2", "--max-new-tokens", "1", "--output-file", "r.json"]) == 0

    result = _result("r.json")
    assert (result["avg_latency"], result["avg_preparation"]) == (20.0, 20.0)
    assert [answer["seconds"] for answer in result["answers"]] == [20.0, 20.0]


@pytest.mark.share(4)
@pytest.mark.parametrize(
    ("main", "argv", "images"),
    [
        (EVAL, ["--use-hmap-v", "--hmap-v-attn-txt-rank", "32", "--hmap-v-attn-img-rank", "8"], (64, 32, 8, 8)),
        (EVAL, [], (64, 64, 64, 64)),
        (CUSTOM, [], (64, 64, 64, 64)),
        (EVAL, ["--use-fast-v"], (64, 32, 32, 32)),
        (CUSTOM, ["--custom-drop"], (64, 64, 8, 8)),
    ],
)
def test_flops_are_those_of_the_prompts(
    main: Main, argv: list[str], images: Sequence[int], checkpoint: Checkpoint
) -> None:
    """`flops_info` by the original's estimate, n^2 + n a layer, averaged over the answers; `flops_ratio` as counted.

    `images` are the image tokens in each of tiny's layers; a question without an image saves nothing.
    """
    assert main([*argv, "--num-samples", "8", "--max-new-tokens", "1", "--output-file", "r.json"]) == 0

    result = _result("r.json")
    prompts = Prompts(checkpoint.tokenizer, checkpoint.config)
    expected = []
    for question in embedded_questions(8):
        n = len(prompts.ids(question))
        layers = [n - 64 + image for image in images] if question.image else [n] * 4
        expected.append(sum(each**2 + each for each in layers) / (4 * (n**2 + n)))
    assert 1.0 in expected
    assert [answer["flops_info"] for answer in result["answers"]] == pytest.approx(expected)
    assert result["flops_info"] == pytest.approx(sum(expected) / 8)
    if len(set(images)) == 1:
        assert result["flops_ratio"] == pytest.approx(1, rel=0.01)
    else:
        assert result["flops_info"] < result["flops_ratio"] < 0.99


class SilentBar(list[int]):
    """A progress bar that looks at no clock."""

    def __enter__(self) -> SilentBar:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def set_postfix(self, **figures: str) -> None:
        pass


def test_chunks_and_samples(answered: Callable[..., None], workplace: Path) -> None:
    """The chunk is cut first, then the first samples of it; each chunk has its own file by default."""
    answered(*"AA")
    assert EVAL(["--num-chunks", "3", "--chunk-idx", "1", "--num-samples", "2"]) == 0

    assert _files(workplace) == ["eval-scivqa-baseline-chunk-1-of-3.json"]
    answers = _result("eval-scivqa-baseline-chunk-1-of-3.json")["answers"]
    assert [answer["id"] for answer in answers] == ["embedded-7", "embedded-8"]


def test_an_empty_chunk_is_a_complete_run(write_questions: Callable[..., Path]) -> None:
    """More chunks than questions: the last chunk answers nothing, and that is fine."""
    file = write_questions([a_record()])
    argv = ["--question-file", str(file), "--num-chunks", "3", "--chunk-idx", "2", "--output-file", "r.json"]
    assert EVAL(argv) == 0

    result = _result("r.json")
    assert (result["complete"], result["accuracy"], result["avg_latency"], result["answers"]) == (True, None, None, [])


BAD_ARGUMENTS: list[tuple[Main, str, str]] = [
    (EVAL, "--num-chunks 0", "at least 1, got '0'"),
    (EVAL, "--num-chunks -3", "at least 1, got '-3'"),
    (CUSTOM, "--num-chunks two", "got 'two'"),
    (EVAL, "--chunk-idx -1", "at least 0, got '-1'"),
    (EVAL, "--num-chunks 2 --chunk-idx 2", "must be in 0..1, got 2"),
    (EVAL, "--num-samples 0", "at least 1, got '0'; -1 means all"),
    (EVAL, "--num-samples -2", "at least 1, got '-2'; -1 means all"),
    (EVAL, "--num-samples 1.5", "got '1.5'"),
    (EVAL, "--max-new-tokens 0", "at least 1, got '0'"),
    (EVAL, "--max-new-tokens 4097", "at most the model's context of 4096 tokens, got 4097"),
    (EVAL, "--max-new-tokens \u0661", "at least 1, got '\u0661'"),
    (EVAL, "--conv-mode llama_2", "'vicuna_v1', 'v1', 'llava_v1', 'plain'"),
    (CUSTOM, "--custom-selection-method kmeans", "'fps', 'tome'"),
    (EVAL, "--dtype int8", "'float32', 'float16', 'bfloat16', 'auto'"),
    (EVAL, "--attn fast", "'sdpa', 'eager', 'flash_attention_2'"),
    (EVAL, "--attn flash_attention_2 --device cpu", "needs a CUDA device"),
    (EVAL, "--device tpu", "auto, cpu, cuda or cuda:NUMBER, got 'tpu'"),
    (EVAL, "--device cuda:77", "must be there, got cuda:77"),
    (EVAL, "--nonsense 1", "unrecognized arguments"),
    (EVAL, "--question-file", "expected one argument"),
    (EVAL, "--baseline", "unrecognized arguments"),
    (EVAL, "--device cpu --device-map auto", "--device must not come with --device-map, got 'cpu' and 'auto'"),
    (EVAL, "--use-hmap-v --hmap-v-attn-txt-rank 65", "at most the 64 image tokens, got 65"),
    (EVAL, "--use-hmap-v --hmap-v-attn-txt-rank -1", "at least 0, got '-1'"),
    (EVAL, "--use-hmap-v --hmap-v-attn-img-rank 33", "at most hmap_v_attn_txt_rank, got 33 and 32"),
    (EVAL, "--use-hmap-v --hmap-v-attn-txt-layer 2 --hmap-v-attn-img-layer 2", "got 2 and 2"),
    (EVAL, "--use-hmap-v --hmap-v-attn-txt-layer 0", "at least 1, got '0'"),
    (EVAL, "--use-hmap-v --sys-length 1", "must be the"),
    (EVAL, "--use-hmap-v --sys-length -1", "at least 0, got '-1'"),
    (EVAL, "--use-hmap-v --img-length 576", "the model's 64 image tokens, got 576"),
    (CUSTOM, "--custom-temperature 0", "greater than 0, got '0'"),
    (CUSTOM, "--custom-temperature -0.1", "greater than 0, got '-0.1'"),
    (CUSTOM, "--custom-temperature nan", "greater than 0, got 'nan'"),
    (CUSTOM, "--custom-temperature inf", "greater than 0, got 'inf'"),
    (CUSTOM, "--custom-temperature 1_0", "greater than 0, got '1_0'"),
    (CUSTOM, "--custom-temperature hot", "greater than 0, got 'hot'"),
    (CUSTOM, "--custom-kept-tokens 0", "at least 1, got '0'"),
    (CUSTOM, "--custom-agg-layer -1", "at least 0, got '-1'"),
    (CUSTOM, "--custom-sys-length 3", "must be the"),
    (CUSTOM, "--custom-first-index -1", "at least 0, got '-1'"),
    (CUSTOM, "--custom-first-index 64", "below the 64 image tokens, got 64"),
    (CUSTOM, "--custom-image-token-length 3", "the model's 64 image tokens, got 3"),
    (EVAL, "--model-path nowhere", "must be an existing folder"),
    (EVAL, "--model-path 8b", "preset (tiny, 7b, 13b), got '8b'"),
    (EVAL, "--model-path .", "config.json"),
    (EVAL, "--model-base x", "a model base is for a projector"),
    (EVAL, "--device cpu --load-8bit", "loading in 8 bit needs a CUDA device"),
    (CUSTOM, "--device cpu --load-4bit", "loading in 4 bit needs a CUDA device"),
    (EVAL, "--load-4bit --load-8bit", "got both"),
    (EVAL, "--question-file missing.json", "question file must be readable"),
    (EVAL, "--question-file .", "question file must be readable"),
    (EVAL, "--image-folder .", "needs --question-file"),
    (EVAL, "--output-file missing/r.json", "must be in an existing folder"),
    (EVAL, "--output-file .", "must be a regular file"),
    (EVAL, f"--output-file {'n' * 300}", "must be writable"),
]


@pytest.mark.usefixtures("not_loaded")
@pytest.mark.parametrize(("main", "argv", "rule"), BAD_ARGUMENTS)
def test_bad_arguments_are_one_line(
    main: Main, argv: str, rule: str, workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit 2, one line on stderr with the rule and what came, nothing written, no weights loaded."""
    assert main(argv.split()) == 2

    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"{NAMES[main]}: error: ")
    assert rule in printed.err
    assert printed.err.count("\n") == 1
    assert _files(workplace) == []


@pytest.mark.usefixtures("not_loaded")
@pytest.mark.parametrize(
    ("record", "rule"),
    [
        ("no object", "must be an object"),
        (a_record(id=...), "must have an id"),
        (a_record(image="../work/x.png"), "must lie inside the image folder"),
        (a_record(image="bad\n\x1b[31m.png"), "must be an existing file"),
        (a_record(id="long", conversations=[{"from": "human", "value": "word " * 4096}]), "the context of 4096 tokens"),
    ],
)
def test_one_bad_record_stops_the_run_before_the_model_is_loaded(
    record: Any,
    rule: str,
    workplace: Path,
    images: Path,
    write_questions: Callable[..., Path],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Exit 2, one line without control characters, nothing written."""
    file = write_questions([a_record(image="good.png")] * 3 + [record])

    assert CUSTOM(["--question-file", str(file), "--image-folder", str(images)]) == 2

    error = capfd.readouterr().err
    assert rule in error
    assert error.count("\n") == 1
    assert "\x1b" not in error
    assert _files(workplace) == []


@pytest.mark.usefixtures("not_loaded")
def test_images_without_a_folder_are_refused(
    write_questions: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """A question file with images needs --image-folder."""
    assert EVAL(["--question-file", str(write_questions([a_record(image="good.png")]))]) == 2
    assert "needs an image folder" in capfd.readouterr().err


@pytest.mark.usefixtures("not_loaded")
def test_the_questions_are_never_overwritten(write_questions: Callable[..., Path]) -> None:
    """Results on top of the question file are refused, also by way of a link."""
    file = write_questions([a_record()])
    before = file.read_bytes()
    Path("link.json").symlink_to(file)

    for output in (str(file), "link.json"):
        assert EVAL(["--question-file", str(file), "--output-file", output]) == 2
    assert file.read_bytes() == before


def test_broken_weights_write_nothing(folder: Path, workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A fault that only loading can find is bad input too: exit 2, one line, nothing written."""
    weights = load_file(folder / "model.safetensors")
    del weights["language_model.lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    assert EVAL(["--model-path", str(folder)]) == 2

    error = capfd.readouterr().err
    assert "missing lm_head.weight" in error
    assert error.count("\n") == 1
    assert _files(workplace) == []


@pytest.mark.share(3)
@PROGRAMS
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 48.00 MiB.\nMore."),
            1,
            "Tried to allocate 48.00",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), 1, "out of memory"),
        (MemoryError(), 1, "out of memory"),
    ],
    ids=["ctrl-c", "cuda", "cpu", "python"],
)
def test_a_run_that_ends_early_writes_what_it_has(
    main: Main,
    error: BaseException,
    code: int,
    said: str,
    answered: Callable[..., None],
    workplace: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """On the third question: two answers written, marked incomplete; one line, no traceback."""
    answered("A", "B", error)
    Path("r.json").write_text("old")

    assert main(["--output-file", "r.json"]) == code

    result = _result("r.json")
    assert (result["complete"], result["total_samples"], len(result["answers"])) == (False, 2, 2)
    assert result["memory"]["peak_bytes"] > 0
    lines = capfd.readouterr().err.splitlines()
    assert said in lines[-1]
    assert f"; 2 of 20 answers are in {Path('r.json').resolve()}, marked incomplete; --resume goes" in lines[-1]
    assert not any("Traceback" in line for line in lines)
    assert _files(workplace) == ["r.json"]


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (torch.OutOfMemoryError("full"), 1)])
def test_a_run_that_ends_while_loading_says_so(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answers yet: the results are there, empty and incomplete, and the peak is absent rather than 0."""

    def load(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(Checkpoint, "load_model", load)
    assert EVAL(["--output-file", "r.json"]) == code

    result = _result("r.json")
    assert (result["complete"], result["answers"], result["accuracy"]) == (False, [], None)
    assert result["memory"] == {"source": None, "peak_bytes": None}


def test_a_fault_of_ours_shows_its_traceback(answered: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    """Exit 70; what was answered is not lost."""
    answered("A", ZeroDivisionError("ours"))

    assert EVAL(["--output-file", "r.json"]) == 70

    assert "Traceback" in capfd.readouterr().err
    assert (_result("r.json")["complete"], _result("r.json")["total_samples"]) == (False, 1)


def test_results_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing that fails half-way leaves the old file as it was, and nothing beside it."""

    def full(self: Path, target: Path) -> None:
        raise OSError("disk full")

    path = tmp_path / "r.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(BadInput, match=r"must be writable, got .*disk full"):
        write_json(path, {"a": 2})

    assert json.loads(path.read_text()) == {"a": 1}
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["r.json"]


@pytest.mark.usefixtures("not_loaded")
def test_a_device_is_never_replaced_by_a_file() -> None:
    """Results go by way of a rename, which would put a plain file in the place of a pipe or of /dev/null."""
    os.mkfifo("pipe")

    assert EVAL(["--output-file", "pipe"]) == 2
    assert Path("pipe").is_fifo()


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
    text = (Path(__file__).parents[2] / "docs" / "himap.md").read_text(encoding="utf-8")
    table = text.partition("## The original programs and ours")[2].partition("\n## ")[0]
    parsers = [build_parser(each.PROGRAM) for each in (eval_scivqa, custom_selection_inference)]
    options = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    answered("A")
    assert CUSTOM(["--num-samples", "1", "--output-file", "r.json"]) == 0
    names = options - {"-h", "--help"} | _result("r.json").keys()

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
    assert _result("r.json")["model_config"]["image_aspect_ratio"] == "pad"
    write_json_file(folder / "config.json", ORIGINAL | {"image_aspect_ratio": "square"})
    assert EVAL([*argv, "--max-new-tokens", "1"]) == 0
    assert line not in capsys.readouterr().out


def test_the_command_line_offers_what_the_library_knows() -> None:
    """Words listed for the parser are the library's own, so neither can change alone."""
    parser = build_parser(custom_selection_inference.PROGRAM)
    methods = next(action.choices for action in parser._actions if action.dest == "custom_selection_method")
    assert methods == SELECTION_METHODS
    assert preparation.EMBEDDED_COUNT == 20
