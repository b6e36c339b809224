"""Shared by tests of the programs: an empty folder, answers without a model, and results as files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llava.answering import Answer, Answerer
from llava.builder import Checkpoint
from llava.eval import custom_selection_inference, eval_scivqa
from llava.questions import Question

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


def read_result(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
