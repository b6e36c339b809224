"""Runs that end early, what they leave, and going on from there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from himap import HimapLlavaForConditionalGeneration
from llava.answering import Answer, Answerer
from llava.builder import Checkpoint
from llava.eval import custom_selection_inference, eval_scivqa
from llava.questions import Question

from .conftest import a_record

EVAL, CUSTOM = eval_scivqa.main, custom_selection_inference.main
ANSWER = Answerer.answer


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: HimapLlavaForConditionalGeneration) -> Path:
    """The current folder; the weights are loaded once for all runs."""
    monkeypatch.setattr(Checkpoint, "load_model", lambda *args: model)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Answers at most `count` questions, with `text` or as the model does, then Ctrl-C. Ids of those answered."""

    def limited(count: int, text: str | None = "A") -> list[str]:
        ids: list[str] = []

        def answer(self: Answerer, question: Question) -> Answer:
            if len(ids) == count:
                raise KeyboardInterrupt
            ids.append(question.id)
            return ANSWER(self, question) if text is None else Answer(text, 1, 9, 0.5)

        monkeypatch.setattr(Answerer, "answer", answer)
        return ids

    return limited


def _result(name: str = "r.json") -> dict[str, Any]:
    read: dict[str, Any] = json.loads(Path(name).read_text())
    return read


def _run(*flags: str, samples: int = 4) -> int:
    return EVAL(["--num-samples", str(samples), "--output-file", "r.json", *flags])


def test_a_complete_result_is_never_replaced_by_a_partial_one(
    answer: Callable[..., list[str]], workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C in a second run: the first one's file is as it was; what there is of the second stands beside it."""
    answer(4)
    assert _run() == 0
    complete = Path("r.json").read_bytes()
    answer(1)

    assert _run() == 130

    assert Path("r.json").read_bytes() == complete
    assert (_result("r.partial.json")["complete"], len(_result("r.partial.json")["answers"])) == (False, 1)
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"eval-scivqa: error: interrupted; 1 of 4 answers are in {workplace / 'r.partial.json'}, marked incomplete; "
        "--resume goes on from there"
    )


def test_more_answers_are_not_replaced_by_fewer(answer: Callable[..., list[str]]) -> None:
    """Neither is a partial result by one with fewer answers; one with as many or more takes its place."""
    for answered, kept in ((3, 3), (1, 3), (3, 3)):
        answer(answered)
        assert _run() == 130
        assert len(_result()["answers"]) == kept
    assert len(_result("r.partial.json")["answers"]) == 1


def test_interrupted_before_anything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C while the questions are checked: the line says that nothing was written."""

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llava.eval.preparation.open_checkpoint", interrupted)
    assert _run() == 130
    assert capsys.readouterr().err == "eval-scivqa: error: interrupted; nothing was written\n"
    assert not Path("r.json").exists()


def test_a_resumed_run_is_the_whole_one(answer: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    """Farthest points are drawn as if nothing had happened: the same answers, in order, each question answered once."""
    argv = ["--num-samples", "5", "--output-file"]
    assert CUSTOM([*argv, "whole.json"]) == 0
    first = answer(2, text=None)
    assert CUSTOM([*argv, "r.json"]) == 130
    second = answer(5, text=None)
    capsys.readouterr()

    assert CUSTOM([*argv, "r.json", "--resume"]) == 0

    assert first + second == [f"embedded-{place}" for place in range(5)]
    whole, resumed = _result("whole.json"), _result()
    assert "Resumed: 2 of 5 answers are in r.json" in capsys.readouterr().out
    earlier = resumed["memory"].pop("earlier")
    assert earlier["file"] == "r.json"
    assert resumed["memory"]["peak_bytes"] >= earlier["peak_bytes"] > 0
    for result in (whole, resumed):
        for answered in (result, *result["answers"]):
            for time in (
                "seconds",
                "prefill_seconds",
                "preparation_seconds",
                "avg_latency",
                "avg_preparation",
                "memory",
            ):
                answered.pop(time, None)
    assert resumed == whole


def test_a_partial_result_beside_a_complete_one_is_resumed(answer: Callable[..., list[str]], workplace: Path) -> None:
    """The complete one is of other settings. The resumed run takes its place; the partial one goes."""
    answer(4)
    assert _run("--max-new-tokens", "7") == 0
    answer(3)
    assert _run() == 130
    last = answer(1)

    assert _run("--resume") == 0

    assert last == ["embedded-3"]
    assert (_result()["complete"], _result()["model_config"]["max_new_tokens"]) == (True, 8)
    assert [file.name for file in workplace.iterdir()] == ["r.json"]


def test_nothing_to_resume_begins_anew(answer: Callable[..., list[str]]) -> None:
    """No file, or one that is no result: all questions are answered."""
    for content in (None, "[]", '{"schema": 1, "complete": false}'):
        if content is not None:
            Path("r.json").write_text(content)
        ids = answer(4)
        assert _run("--resume") == 0
        assert len(ids) == 4


def test_a_complete_result_needs_no_model(
    answer: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resumed, it is there at once, with the same answers and peak."""
    answer(4)
    assert _run() == 0
    before = _result()
    monkeypatch.setattr(Checkpoint, "load_model", lambda *args: pytest.fail("the weights were loaded"))
    for _ in range(2):
        assert _run("--resume") == 0

    after = _result()
    assert after["memory"]["peak_bytes"] == before["memory"]["peak_bytes"]
    assert after | {"memory": None} == before | {"memory": None}
    assert "Questions answered: 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--max-new-tokens", "7"], "'max_new_tokens'"),
        (["--use-hmap-v"], "'mode'"),
        (["--exact-match", "--single-pred-prompt"], "'single_pred_prompt', 'exact_match'"),
        (["--num-samples", "5"], "'questions'"),
    ],
)
def test_other_settings_are_refused(
    flags: list[str], named: str, answer: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers of two settings are no result: exit 2, and the settings that differ."""
    answer(2)
    assert _run() == 130
    before = Path("r.json").read_bytes()
    capsys.readouterr()

    assert _run("--resume", *flags) == 2

    error = capsys.readouterr().err
    assert f"must be of the same questions and settings, got other {named}" in error
    assert error.count("\n") == 1
    assert Path("r.json").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"id": "x"},
        {"conversations": [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "A"}]},
        {"conversations": [{"from": "human", "value": "Which?\nA. one\nB. two"}, {"from": "gpt", "value": "B"}]},
        {"image": ...},
        {"image": "other/good.png"},
    ],
    ids=["id", "text", "label", "no image", "image"],
)
def test_other_questions_are_refused(
    change: dict[str, Any], answer: Callable[..., list[str]], write_questions: Callable[..., Path], images: Path
) -> None:
    """As many questions, one of which has changed since."""
    shutil.copytree(images, images / "other")
    flags = ["--image-folder", str(images), "--question-file"]
    second = {"id": 8, "image": "good.png"}
    answer(1)
    assert _run(*flags, str(write_questions([a_record(), a_record(**second)]))) == 130

    assert _run("--resume", *flags, str(write_questions([a_record(), a_record(**second | change)]))) == 2


def test_a_result_that_was_edited_is_refused(answer: Callable[..., list[str]]) -> None:
    """An answer that lacks a figure, or stands in the place of no question."""
    answer(2)
    assert _run() == 130
    content = _result()
    for broken in ({"place": 4}, {"tokens": ...}):
        answered = content["answers"][0] | broken
        answers = [{key: value for key, value in answered.items() if value is not ...}, content["answers"][1]]
        Path("r.json").write_text(json.dumps(content | {"answers": answers}))
        assert _run("--resume") == 2
