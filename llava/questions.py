"""ScienceQA questions in LLaVA's conversation format: every record and every image is checked before anything runs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava import sample_questions
from llava.errors import BadInput, shown
from llava.images import ImageSource, open_rgb, resolve_image


@dataclass(frozen=True)
class Question:
    """One question. `text` is the human turn as written, `label` the right answer or None where it is not known."""

    id: str
    text: str
    label: str | None = None
    image: ImageSource | None = None


def load_questions(question_file: Path, image_folder: Path | None) -> list[Question]:
    """All questions of a JSON file: `[{"id", "image"?, "conversations": [{"from": "human", "value"}, ...]}, ...]`.

    The first human turn is the question, the first "gpt" turn its label. `image` is a file in `image_folder`; absent
    or null, the question is text-only. Every image is decoded once. Raises BadInput at the first record that breaks
    a rule, naming it.
    """
    questions = []
    readable: set[Path] = set()
    for index, record in enumerate(_read_records(question_file)):
        try:
            question = _question(record, image_folder)
            if isinstance(question.image, Path) and question.image not in readable:
                open_rgb(question.image)
                readable.add(question.image)
        except BadInput as error:
            name = f"record {index}"
            if isinstance(record, dict) and "id" in record:
                name += f" (id {shown(record['id'])})"
            raise BadInput(f"{name} of {shown(str(question_file))}: {error}") from error
        questions.append(question)
    return questions


def chunk(questions: Sequence[Question], num_chunks: int, chunk_idx: int) -> list[Question]:
    """Chunk `chunk_idx` (from 0) of `num_chunks`, each ceil(count / num_chunks) long; the last ones may be empty."""
    if num_chunks < 1:
        raise BadInput(f"the number of chunks must be at least 1, got {num_chunks}")
    if not 0 <= chunk_idx < num_chunks:
        raise BadInput(f"the chunk index must be in 0..{num_chunks - 1}, got {chunk_idx}")
    size = math.ceil(len(questions) / num_chunks)
    return list(questions[chunk_idx * size : (chunk_idx + 1) * size])


def embedded_questions(count: int) -> list[Question]:
    """The first `count` questions of an endless list that comes with the package; always the same.

    The texts repeat after 20 questions, the pictures do not: no question is longer than the longest of the first 20.
    """
    if count < 1:
        raise BadInput(f"the number of questions must be at least 1, got {count}")
    questions = []
    for index in range(count):
        position = index % len(sample_questions.TEXTS)
        text, label = sample_questions.TEXTS[position]
        if position in sample_questions.TEXT_ONLY:
            questions.append(Question(f"embedded-{index}", text, label))
        else:
            questions.append(Question(f"embedded-{index}", f"<image>\n{text}", label, sample_questions.picture(index)))
    return questions


def _read_records(question_file: Path) -> list[Any]:
    name = shown(str(question_file))
    try:
        records = json.loads(question_file.read_bytes().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        # UnicodeDecodeError and JSONDecodeError are ValueErrors; so is a path with a NUL in it.
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise BadInput(f"the question file must be readable UTF-8 JSON, got {name}: {reason}") from error
    if not isinstance(records, list) or not records:
        raise BadInput(f"the question file must hold a list of at least one record, got {shown(records)} in {name}")
    return records


def _question(record: Any, image_folder: Path | None) -> Question:
    if not isinstance(record, dict):
        raise BadInput(f"a record must be an object, got {shown(record)}")
    record_id, image = record.get("id"), record.get("image")
    if isinstance(record_id, bool) or not isinstance(record_id, str | int):
        raise BadInput(f"a record must have an id, a string or a whole number, got {shown(record_id)}")
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise BadInput(f"a record must have conversations, a list of at least one turn, got {shown(turns)}")
    text, label = _first_value(turns, "human"), _first_value(turns, "gpt")
    if text is None:
        raise BadInput(f"conversations must have a human turn, got {shown([turn.get('from') for turn in turns])}")
    path = None
    if image is not None:
        if image_folder is None:
            raise BadInput(f"a record with an image needs an image folder, got none for {shown(image)}")
        path = resolve_image(image_folder, _text(image, "image"))
    return Question(_text(str(record_id), "id"), text, label, path)


def _first_value(turns: list[dict[str, Any]], speaker: str) -> str | None:
    turn = next((turn for turn in turns if turn.get("from") == speaker), None)
    return None if turn is None else _text(turn.get("value"), f"the value of a {speaker} turn")


def _text(value: Any, role: str) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{role} must be a string, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair; no tokenizer takes it
        raise BadInput(f"{role} must be valid Unicode, got {shown(value)}") from error
    return value
