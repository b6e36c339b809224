"""Results of a run, and writing them to a file whole or not at all."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llava.errors import BadInput, shown
from llava.eval.terminal import say
from llava.judging import EXACT, LETTER
from vram.files import atomic_write
from vram.units import format_bytes

SCHEMA = 1


@dataclass(frozen=True)
class Answered:
    """One question answered. `seconds` are the whole answer's. `correct`, `judged_by`, `letter`: see `Judgement`."""

    id: str
    prediction: str
    label: str | None
    correct: bool | None
    seconds: float
    tokens: int
    judged_by: str | None = None
    letter: str | None = None


@dataclass(frozen=True)
class Summary:
    """`accuracy` in 0..1 over the labelled answers, `avg_latency` in seconds; None: nothing to average.

    `judged_by` counts the labelled answers by how they were judged. `unread_samples` are answers judged by letter in
    which no letter could be read; they count as wrong.
    """

    accuracy: float | None
    avg_latency: float | None
    total_samples: int
    correct_samples: int
    judged_by: Mapping[str, int]
    unread_samples: int


def summarise(answers: Sequence[Answered]) -> Summary:
    """The figures over all answers."""
    judged = [answer.correct for answer in answers if answer.correct is not None]
    return Summary(
        accuracy=sum(judged) / len(judged) if judged else None,
        avg_latency=sum(answer.seconds for answer in answers) / len(answers) if answers else None,
        total_samples=len(answers),
        correct_samples=sum(judged),
        judged_by=dict(Counter(answer.judged_by for answer in answers if answer.judged_by is not None)),
        unread_samples=sum(answer.judged_by == LETTER and answer.letter is None for answer in answers),
    )


def as_json(
    answers: Sequence[Answered],
    *,
    complete: bool,
    mode: str,
    memory: Mapping[str, Any],
    model_config: Mapping[str, Any],
) -> dict[str, Any]:
    """The results file: the original program's keys, and ours."""
    return {
        "schema": SCHEMA,
        "complete": complete,
        "mode": mode,
        **asdict(summarise(answers)),
        "memory": dict(memory),
        "model_config": dict(model_config),
        "answers": [asdict(answer) for answer in answers],
    }


def print_figures(answers: Sequence[Answered], memory: Mapping[str, Any], output: Path) -> None:
    """The lines on the terminal at the end of a run."""
    summary = summarise(answers)
    accuracy, latency = "no labels", "no questions"
    if summary.accuracy is not None:
        accuracy = f"{summary.accuracy:.2%} ({summary.correct_samples} correct; {_judging(summary)})"
    if summary.avg_latency is not None:
        latency = f"{summary.avg_latency:.3f} s"
    say(f"Questions answered: {summary.total_samples}")
    say(f"Accuracy: {accuracy}")
    say(f"Average latency: {latency}")
    say(f"Peak memory: {_peak(memory)}")
    say(f"Results: {output}")


def _judging(summary: Summary) -> str:
    """How answers were judged, in words."""
    counts = [(summary.judged_by.get(LETTER), "letter"), (summary.judged_by.get(EXACT), "equal text")]
    parts = [f"{count} judged by {way}" for count, way in counts if count]
    return ", ".join(parts + [f"{summary.unread_samples} without a readable letter"] * bool(summary.unread_samples))


def _peak(memory: Mapping[str, Any]) -> str:
    if memory["peak_bytes"] is None:
        return "not measured"
    peak = f"{format_bytes(memory['peak_bytes'])} ({memory['source']})"
    if "ranks" not in memory:
        return peak
    return f"{peak}, of rank {memory['worst_rank']}, the worst of {len(memory['ranks'])}"


def check_output(path: Path, question_file: Path | None, role: str = "output file") -> Path:
    """`path` with its links followed. Raises BadInput unless a file can be written there; never over the questions."""
    name = shown(str(path))
    try:
        target = path.resolve()
        if not target.parent.is_dir():
            raise BadInput(f"the {role} must be in an existing folder, got {name}")
        if target.exists() and not target.is_file():
            raise BadInput(f"the {role} must be a regular file, got {name}")
        if question_file is not None and question_file.resolve() == target:
            raise BadInput(f"the {role} must not be the question file, got {name}")
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"the {role} must be writable, got {name}: {error}") from error
    return target


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path`, which at every moment holds the old content or all of the new."""
    data = (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
    try:
        atomic_write(path, data)
    except OSError as error:
        raise BadInput(f"the output file must be writable, got {shown(str(path))}: {error}") from error
