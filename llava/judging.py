"""Judging multiple-choice answers: the letters of answer and label are compared, as LLaVA's evaluator does.

Pure text. Source of the rules: `llava/eval/eval_science_qa.py` of haotian-liu/LLaVA. It reads "B", "B. two" and "The
answer is B."; read here too are a letter in brackets or in lower case, "Answer: B", and a last line that is a letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LETTER, EXACT = "letter", "exact"

_USUAL = "ABCDE"  # LLaVA's evaluator knows these, whatever the question
# Ways to write an option: at the beginning of a line, in brackets, or within a line.
_OPTIONS = (
    re.compile(r"^[ \t]*([A-Z])[.):][ \t]*\S", re.MULTILINE | re.IGNORECASE),
    re.compile(r"\(([A-Z])\)\s*\S", re.IGNORECASE),
    re.compile(r"(?<!\w)([A-Z])[.)][ \t]+\S"),
)
_ALONE = re.compile(r"\W*(?:(?i:option|choice)\W+)?([A-Za-z])\W*")
_FIRST = re.compile(r"""[\s"'*(\[]*([A-Za-z])(?:[.:)\]*"']+\s|\s*\n)""")
_SENTENCE = re.compile(r"The answer is ([A-Z])\b")
# In lower case "a" is a word too: "the answer is a dog".
_ANY_SENTENCE = re.compile(
    r"\b(?i:answer)\W*(?:(?i:is)\b\W*)?(?:(?i:option|choice)\W+)?(?:([A-Z])\b|([a-z])(?=\W*$|[.)\]]))"
)


@dataclass(frozen=True)
class Judgement:
    """`correct` is None without a label. `judged_by`: LETTER, EXACT, or None without a label.

    `letter`: the option read in the answer, in upper case; None where none could be read, or was looked for.
    """

    correct: bool | None
    judged_by: str | None
    letter: str | None = None


def judge(answer: str, label: str | None, question: str, *, exact_match: bool = False) -> Judgement:
    """Judge `answer` by the option's letter in it and in `label`; options are those in the text of `question`.

    An answer without a readable letter is wrong. Texts must be equal with `exact_match`, and where the label has no
    letter.
    """
    if label is None:
        return Judgement(None, None)
    options = option_letters(question)
    expected = None if exact_match else read_letter(label, options)
    if expected is None:
        return Judgement(answer == label, EXACT)
    letter = read_letter(answer, options)
    return Judgement(letter == expected, LETTER, letter)


def option_letters(question: str) -> str:
    """Letters of the options in a question's text, "ABC" for example; "ABCDE" where the text has none."""
    for pattern in _OPTIONS:
        letters = [match[1].upper() for match in pattern.finditer(question)]
        runs = (_run(letters[start:]) for start, letter in enumerate(letters) if letter == "A")
        if len(longest := max(runs, key=len, default="")) > 1:
            return longest
    return _USUAL


def _run(letters: list[str]) -> str:
    """A, B, C, ... as far as `letters` have them in this order; others between them are skipped."""
    run = ""
    for letter in letters:
        if letter == chr(ord("A") + len(run)):
            run += letter
    return run


def read_letter(text: str, options: str) -> str | None:
    """The option that `text` chooses, in upper case: one of `options`, or None where no or no single one is read."""
    text = text.strip()
    return next((letter for letters in _readings(text, options) if (letter := _single(letters))), None)


def _readings(text: str, options: str) -> Iterator[set[str]]:
    """Options read in each way, the surest first; a way that reads several ends the search."""
    last_line = text.rpartition("\n")[2]
    ways = (
        [match[1] for match in [_ALONE.fullmatch(text)] if match],
        [match[1] for match in [_FIRST.match(text)] if match],
        [match[1] for match in _SENTENCE.finditer(text)],
        [match[1] or match[2] for match in _ANY_SENTENCE.finditer(text)],
        [match[1] for match in [_ALONE.fullmatch(last_line)] if match],
    )
    for way in ways:
        letters = {letter.upper() for letter in way} & set(options)
        yield letters
        if len(letters) > 1:
            return


def _single(letters: set[str]) -> str | None:
    return next(iter(letters)) if len(letters) == 1 else None
