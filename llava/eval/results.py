"""Results of a run, and writing them to a file whole or not at all."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.errors import BadInput, shown
from llava.eval.terminal import say
from llava.judging import EXACT, LETTER
from llava.mode_table import ModeFigures
from vram.files import atomic_write
from vram.units import format_bytes

if TYPE_CHECKING:
    from llava.answering import Answer  # which imports torch

SCHEMA = 1


@dataclass(frozen=True)
class Answered:
    """One question answered. Figures that were not taken are None.

    `seconds` were spent in `generate`, `preparation_seconds` around it: the image, the prompt and the answer's text.
    `correct`, `judged_by`, `letter`: see `Judgement`. `flops_ratio` is the prompt's share of baseline's FLOPs
    (`himap.flops.prefill_flops`), `flops_info` the original program's estimate of it (`himap.flops.rough_flops`).
    `place` is the question's among all of the run, from 0. `prefill_seconds` are those of `seconds` until the prompt's
    logits were there; `cache_bytes` are the prompt's keys and values (`himap.flops.cache_bytes`), None without a cache.
    """

    id: str
    prediction: str
    label: str | None
    correct: bool | None
    seconds: float
    tokens: int
    judged_by: str | None = None
    letter: str | None = None
    preparation_seconds: float | None = None
    flops_ratio: float | None = None
    flops_info: float | None = None
    place: int | None = None
    prefill_seconds: float | None = None
    cache_bytes: int | None = None


@dataclass(frozen=True)
class Summary:
    """`accuracy` in 0..1 over the labelled answers; None: nothing to average.

    `avg_latency` and `avg_preparation` are averages of the answers' `seconds` and `preparation_seconds`, `flops_info`
    and `flops_ratio` those of the same name.
    `judged_by` counts the labelled answers by how they were judged. `unread_samples` are answers judged by letter in
    which no letter could be read; they count as wrong.
    """

    accuracy: float | None
    avg_latency: float | None
    total_samples: int
    correct_samples: int
    flops_info: float | None
    avg_preparation: float | None
    flops_ratio: float | None
    judged_by: Mapping[str, int]
    unread_samples: int


def summarise(answers: Sequence[Answered]) -> Summary:
    """The figures over all answers."""
    judged = [answer.correct for answer in answers if answer.correct is not None]
    return Summary(
        accuracy=sum(judged) / len(judged) if judged else None,
        avg_latency=_average(answer.seconds for answer in answers),
        total_samples=len(answers),
        correct_samples=sum(judged),
        flops_info=_average(answer.flops_info for answer in answers),
        avg_preparation=_average(answer.preparation_seconds for answer in answers),
        flops_ratio=_average(answer.flops_ratio for answer in answers),
        judged_by=dict(Counter(answer.judged_by for answer in answers if answer.judged_by is not None)),
        unread_samples=sum(answer.judged_by == LETTER and answer.letter is None for answer in answers),
    )


def mode_figures(mode: str, answers: Sequence[Answered], memory: Mapping[str, Any]) -> ModeFigures:
    """The figures of a mode that has answered all its questions."""
    summary = summarise(answers)
    prefill_seconds, decode_seconds = average_times(answers)
    return ModeFigures(
        mode,
        peak_bytes=memory["peak_bytes"],
        cache_bytes=max((answer.cache_bytes for answer in answers if answer.cache_bytes is not None), default=None),
        prefill_seconds=prefill_seconds,
        decode_seconds=decode_seconds,
        flops_ratio=summary.flops_ratio,
        accuracy=summary.accuracy,
    )


def average_times(answers: Sequence[Answered | Answer]) -> tuple[float | None, float | None]:
    """Seconds of a prefill, and of a token after the first; None where no answer has them."""
    decoded = [answer for answer in answers if answer.prefill_seconds is not None and answer.tokens > 1]
    seconds = sum(answer.seconds - (answer.prefill_seconds or 0) for answer in decoded)
    decode_seconds = seconds / sum(answer.tokens - 1 for answer in decoded) if decoded else None
    return _average(answer.prefill_seconds for answer in answers), decode_seconds


def _average(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def as_json(
    answers: Sequence[Answered],
    *,
    complete: bool,
    mode: str,
    memory: Mapping[str, Any],
    model_config: Mapping[str, Any],
    questions: Mapping[str, Any],
) -> dict[str, Any]:
    """The results file: the original program's keys, and ours. `questions` are their count and digest."""
    return {
        "schema": SCHEMA,
        "complete": complete,
        "mode": mode,
        **asdict(summarise(answers)),
        "memory": dict(memory),
        "model_config": dict(model_config),
        "questions": dict(questions),
        "answers": [asdict(answer) for answer in answers],
    }


def print_figures(answers: Sequence[Answered], memory: Mapping[str, Any], output: Path) -> None:
    """The lines on the terminal at the end of a run: those of the original program, then ours."""
    summary = summarise(answers)
    _print_as_the_original(summary)
    accuracy, latency = "no labels", "no questions"
    if summary.accuracy is not None:
        accuracy = f"{summary.accuracy:.2%} ({summary.correct_samples} correct; {_judging(summary)})"
    if summary.avg_latency is not None:
        latency = f"{summary.avg_latency:.3f} s"
    if summary.avg_preparation is not None:
        latency += f", and {summary.avg_preparation:.3f} s of preparation"
    say(f"Questions answered: {summary.total_samples}")
    say(f"Accuracy: {accuracy}")
    say(f"Average latency: {latency}")
    if summary.flops_ratio is not None:
        say(f"FLOPs of a prompt: {summary.flops_ratio:.1%} of baseline's")
    say(f"Peak memory: {_peak(memory)}")
    say(f"Results: {output}")


def _print_as_the_original(summary: Summary) -> None:
    if summary.accuracy is not None:
        say(str(summary.accuracy))
    if summary.avg_latency is not None:
        say(f"Avg Latency/Example: {summary.avg_latency:.6f}s")
    if summary.flops_info is not None:
        say(f"FLOPs Ratio (attn+ffn approx): {summary.flops_info:.2%}")


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


def read_result(path: Path) -> dict[str, Any] | None:
    """The results that a program wrote to `path`; None where there is no file, or another one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or "complete" not in content:
        return None
    memory, answers = content.get("memory"), content.get("answers")
    is_whole = isinstance(memory, dict) and {"source", "peak_bytes"} <= memory.keys() and isinstance(answers, list)
    return content if is_whole else None


def partial_file(output: Path) -> Path:
    """The file for partial results where `output` holds better ones."""
    return output.with_name(f"{output.stem}.partial{output.suffix}")


def write_result(output: Path, content: Mapping[str, Any]) -> Path:
    """Write results to `output`; partial ones beside it, where it holds complete ones or more answers. The file.

    Complete results that go on from a partial file replace it. Raises BadInput where they can't be written.
    """
    written = None if content["complete"] else read_result(output)
    if written is not None and (written["complete"] or len(written["answers"]) > len(content["answers"])):
        output = partial_file(output)
    write_json(output, content)
    partial, earlier = partial_file(output), content["memory"].get("earlier", {})
    if content["complete"] and earlier.get("file") == partial.name:
        partial.unlink(missing_ok=True)
    return output


def with_earlier(memory: Mapping[str, Any], earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """Memory of a run that goes on from an `earlier` one: the higher peak of both, and the earlier one's own."""
    if earlier is None:
        return dict(memory)
    both = dict(memory) | {"earlier": {key: value for key, value in earlier.items() if key != "earlier"}}
    if earlier["peak_bytes"] is not None and earlier["peak_bytes"] > (memory["peak_bytes"] or 0):
        both |= {"source": earlier["source"], "peak_bytes": earlier["peak_bytes"]}
    return both


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path`, which at every moment holds the old content or all of the new."""
    data = (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()
    try:
        atomic_write(path, data)
    except OSError as error:
        raise BadInput(f"the output file must be writable, got {shown(str(path))}: {error}") from error
