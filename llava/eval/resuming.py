"""Going on from the partial results of an earlier run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from llava.errors import BadInput, shown
from llava.eval.results import Answered, partial_file, read_result


@dataclass(frozen=True)
class Earlier:
    """An earlier run's answers by the place of their question, its memory, and the name of the file that holds both."""

    answers: Mapping[int, Answered]
    memory: Mapping[str, Any]
    file: str


def read_earlier(
    output: Path, *, mode: str, model_config: Mapping[str, Any], questions: Mapping[str, Any]
) -> Earlier | None:
    """Results in `output` or, partial ones, beside it: those with more answers. None where there are none.

    Raises BadInput where they are of other questions, another mode or other settings.
    """
    run = json.loads(json.dumps({"mode": mode, "model_config": dict(model_config), "questions": dict(questions)}))
    files = (output, partial_file(output))
    results = [(file, content) for file in files if (content := read_result(file)) is not None]
    matching = [(file, content) for file, content in results if not _differences(run, content)]
    if results and not matching:
        file, content = results[0]
        raise BadInput(
            f"results to resume must be of the same questions and settings, got other {_differences(run, content)} in "
            f"{shown(file.name)}"
        )
    if not matching:
        return None
    file, content = max(matching, key=lambda each: len(each[1]["answers"]))
    answers = _by_place(file, content["answers"], questions["count"])
    return Earlier(answers, content["memory"] | {"file": file.name}, file.name)


def _differences(run: dict[str, Any], content: dict[str, Any]) -> str:
    """Names of what differs between a run and the content of a results file; "" where nothing does."""
    names = []
    for key, value in run.items():
        other = content.get(key)
        if key == "model_config" and isinstance(other, dict):
            names += [name for name in value | other if value.get(name) != other.get(name)]
        elif other != value:
            names.append(key)
    return ", ".join(shown(name) for name in names)


def _by_place(file: Path, answers: list[Any], count: int) -> dict[int, Answered]:
    known = {field.name for field in fields(Answered)}
    by_place = {}
    for answer in answers:
        if not isinstance(answer, dict) or answer.keys() != known or answer["place"] not in range(count):
            raise BadInput(f"results to resume must have whole answers, got {shown(answer)} in {shown(file.name)}")
        by_place[answer["place"]] = Answered(**answer)
    return by_place
