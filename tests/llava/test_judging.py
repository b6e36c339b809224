from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llava.answering import Answer, Answerer
from llava.eval import eval_scivqa
from llava.judging import EXACT, LETTER, Judgement, judge, option_letters, read_letter

from .conftest import a_record
from .test_questions import SHARED

LINES = "Which?\nA. one\nB. two\nC. three"
FORMATS: dict[str, Callable[[str, str], str]] = {
    "B": lambda letter, text: letter,
    "The answer is B.": lambda letter, text: f"The answer is {letter}.",
    "B. text": lambda letter, text: f"{letter}. {text}",
}
LECTURE = "A food web has arrows.\nA. thaliana is a plant; option A is no food. "


@pytest.mark.parametrize(
    "text",
    [
        *("B", "b", " B\n", "B.", "B:", "B)", "(B)", "(b).", "[B]", "**B**", "'B'", "option B", "Option (B)."),
        *("B. two", "B: two", "B) two", "(B) two", "b) two", "**B.** two", "B\nsince it is two"),
        *("The answer is B.", "The answer is B", "The answer is (B).", "the answer is b", "The answer is: B"),
        *("The correct answer is B, two.", "The answer is option B.", "Answer: B", "Answer: (B) two", "ANSWER: B."),
        *("The answer is B. BECAUSE: A is one.", LECTURE + "The answer is B.", "LECTURE: a web\n###\nANSWER: B."),
        *("E. coli lives there. The answer is B.", "It has two parts.\n\n(B)", "The answer is B. The answer is B."),
    ],
)
def test_a_letter_is_read_on_both_sides(text: str) -> None:
    """In any of these forms, as an answer to the label "B", as the label of the answer "B", and of itself."""
    assert judge(text, "B", LINES) == Judgement(True, LETTER, "B")
    assert judge("B", text, LINES) == Judgement(True, LETTER, "B")
    assert judge(text, text, LINES) == Judgement(True, LETTER, "B")
    assert judge(text, "The answer is C.", LINES) == Judgement(False, LETTER, "B")


@pytest.mark.parametrize(
    "text",
    ["", "two", "Because of it", "The answer is Because", "the answer is a bird.", "e.g. this", "answers B", "A dog",
     "D", "D. four", "The answer is D.", "I see A, B and C", "The answer is B, or rather: The answer is C.", "1"],
)  # fmt: skip
def test_an_answer_without_a_letter_is_wrong_and_counted(text: str) -> None:
    """No letter, one in a word, one that is no option, or two: nothing is guessed."""
    assert judge(text, "B", LINES) == Judgement(False, LETTER, None)


def test_the_first_reading_counts() -> None:
    """As in LLaVA's evaluator: an answer that begins with an option is that option, whatever follows."""
    assert read_letter("A. one\nB. two", "AB") == "A"
    assert read_letter("B. two. The answer is C.", "ABC") == "B"
    assert read_letter("The answer is A. It may be so.\nB", "AB") == "A"


@pytest.mark.parametrize(
    ("question", "letters"),
    [
        (LINES, "ABC"),
        ("Which?\n(A) one\n(B) two", "AB"),
        ("Which?\na) one\nb) two\n<image>", "AB"),
        ("Which?\nA.one\nB.two", "AB"),
        ("Context: N/A\nQuestion: Which?\nOptions: (A) one (B) two (C) it\n<image>", "ABC"),
        ("Which? Options: A. one B. two C. it", "ABC"),
        ("A. thaliana is a plant.\nWhich?\nA. one\nB. two\nC. it\nD. so\nE. or\nF. if", "ABCDEF"),
        ("Which?\nA. vitamin (A)\nB. vitamin (B)\nC. both", "ABC"),
        ("What is this?", "ABCDE"),
        ("A. thaliana is what?", "ABCDE"),
    ],
)
def test_options_are_known_from_the_question(question: str, letters: str) -> None:
    """One a line, in brackets, or within a line; the five of LLaVA's evaluator where the question has none."""
    assert option_letters(question) == letters


def test_a_label_without_a_letter_is_compared_as_text() -> None:
    """Free answers, and every answer with exact_match; without a label nothing is judged."""
    assert judge("a dog", "a dog", "What is this?") == Judgement(True, EXACT)
    assert judge("A dog", "a dog", "What is this?") == Judgement(False, EXACT)
    assert judge("B", "B.", LINES, exact_match=True) == Judgement(False, EXACT)
    assert judge("B", "B", LINES, exact_match=True) == Judgement(True, EXACT)
    assert judge("B", None, LINES) == Judgement(None, None)


def _published() -> list[dict[str, Any]]:
    file = SHARED / "questions-200.json"
    if not file.exists():
        pytest.skip("the 200 ScienceQA questions are not here")
    records: list[dict[str, Any]] = json.loads(file.read_text())
    return records


@pytest.mark.share(3)
@pytest.mark.parametrize("written", FORMATS)
def test_always_b_scores_the_share_of_b_labels(
    written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """200 real questions, labels in three formats: 69 of them are "B". By equal text, only the first format scores."""
    records = _published()
    letters = Counter(record["conversations"][1]["value"] for record in records)
    for record in records:
        question, label = record["conversations"]
        text = question["value"].partition(f"\n{label['value']}. ")[2].partition("\n")[0]
        assert text
        label["value"] = FORMATS[written](label["value"], text)
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(records))
    monkeypatch.setattr(Answerer, "answer", lambda self, question: Answer("B", 2, prompt_tokens=9, seconds=0.1))
    argv = ["--question-file", str(file), "--image-folder", str(SHARED / "images")]
    output = tmp_path / "r.json"

    assert eval_scivqa.main([*argv, "--output-file", str(output)]) == 0
    result = json.loads(output.read_text())

    assert letters["B"] == 69
    assert (result["accuracy"], result["correct_samples"]) == (0.345, 69)
    assert (result["judged_by"], result["unread_samples"]) == ({"letter": 200}, 0)
    assert "Accuracy: 34.50% (69 correct; 200 judged by letter)" in capsys.readouterr().out
    assert {answer["letter"] for answer in result["answers"]} == {"B"}


def test_the_results_say_how_answers_were_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_questions: Callable[..., Path]
) -> None:
    """Judged by letter, by equal text, or unread; --exact-match judges all by equal text, as the original does."""
    human = {"from": "human", "value": LINES}
    labels = ["The answer is B.", "B", "two dogs", None]
    turns = [[human] + [{"from": "gpt", "value": label}] * (label is not None) for label in labels]
    file = write_questions([a_record(id=place, conversations=each) for place, each in enumerate(turns)])
    answers = {"0": "B", "1": "Both", "2": "two dogs", "3": "A"}
    monkeypatch.setattr(Answerer, "answer", lambda self, question: Answer(answers[question.id], 2, 9, 0.1))
    results = []
    for flags in ([], ["--exact-match"]):
        output = tmp_path / "r.json"
        assert eval_scivqa.main(["--question-file", str(file), "--output-file", str(output), *flags]) == 0
        results.append(json.loads(output.read_text()))

    letter, exact = results
    assert [(each["correct"], each["judged_by"], each["letter"]) for each in letter["answers"]] == [
        (True, "letter", "B"), (False, "letter", None), (True, "exact", None), (None, None, None)
    ]  # fmt: skip
    assert (letter["judged_by"], letter["unread_samples"]) == ({"letter": 2, "exact": 1}, 1)
    assert [each["correct"] for each in exact["answers"]] == [False, False, True, None]
    assert (exact["judged_by"], exact["unread_samples"]) == ({"exact": 3}, 0)
    assert (letter["model_config"]["exact_match"], exact["model_config"]["exact_match"]) == (False, True)
