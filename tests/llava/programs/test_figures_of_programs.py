"""Figures of the programs: keys of results, accuracy, memory, times and FLOPs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from llava.answering import Answerer
from llava.builder import Checkpoint
from llava.eval.results import Answered, Summary, summarise
from llava.prompting import Prompts
from llava.questions import embedded_questions
from tests.llava.conftest import a_record
from tests.llava.programs.conftest import CUSTOM, EVAL, PROGRAMS, Main, read_result


def test_runs_repeat_and_modes_differ(workplace: Path) -> None:
    """Two runs of farthest-point selection, which draws at random, give the same answers; another mode does not."""
    state = torch.get_rng_state()
    predictions = []
    for argv in (["--output-file", "1"], ["--output-file", "2"], ["--output-file", "3", "--baseline"]):
        assert CUSTOM([*argv, "--num-samples", "3"]) == 0
        predictions.append([answer["prediction"] for answer in read_result(argv[1])["answers"]])
        torch.rand(1)
    assert predictions[0] == predictions[1] != predictions[2]
    torch.set_rng_state(state)
    assert CUSTOM(["--num-samples", "1"]) == 0
    assert torch.equal(torch.get_rng_state(), state)


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

    result = read_result("r.json")
    assert {"accuracy", "avg_latency", "total_samples", "correct_samples", "flops_info", "model_config"} <= set(result)
    assert (settings | {"sys_length": None, "img_length": None}).items() <= result["model_config"].items()


def test_keep_attentions_costs_memory(workplace: Path) -> None:
    """The old behaviour, end to end: the same answers, a higher peak."""
    assert EVAL(["--num-samples", "2", "--output-file", "plain.json"]) == 0
    assert EVAL(["--num-samples", "2", "--output-file", "kept.json", "--keep-attentions"]) == 0

    plain, kept = read_result("plain.json"), read_result("kept.json")
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

    result = read_result("r.json")
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

    result = read_result("r.json")
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

    result = read_result("r.json")
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
