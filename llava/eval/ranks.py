"""What the processes that torchrun starts (its ranks) tell of their shares, and the one result of all. No torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from llava.eval.results import Answered, as_json
from vram.exit_codes import BAD_INPUT, FINE, INTERRUPTED, OUR_FAULT, OUT_OF_MEMORY

_SAME = ("mode", "model_config", "questions", "digest")  # of a header: what ranks must agree on


@dataclass(frozen=True)
class Rank:
    """Process `index` of `count`; on its node, the `node`th, it is number `local` of `on_node`. All from 0."""

    index: int
    count: int
    local: int
    on_node: int
    node: int

    @classmethod
    def here(cls, environment: Mapping[str, str]) -> Rank | None:
        """This process's rank; None unless torchrun started it."""
        if "TORCHELASTIC_RUN_ID" not in environment:
            return None
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
        return cls(*(int(environment[name]) for name in names))

    def share(self, count: int) -> range:
        """Its places among `count` questions: every `self.count`th, so that long questions in a row are shared."""
        return range(self.index, count, self.count)

    @property
    def neighbours(self) -> range:
        """The ranks of its node, itself included: torchrun numbers them in a row."""
        return range(self.index - self.local, self.index - self.local + self.on_node)

    def file(self, output: Path) -> Path:
        """Where its answers are kept, beside `output`, until they are all gathered there."""
        return rank_file(output, self.index, self.count)

    def __str__(self) -> str:
        return f"rank {self.index} of {self.count}"


def rank_file(output: Path, index: int, count: int) -> Path:
    """OUTPUT.rank3-of-4.jsonl."""
    return output.with_name(f"{output.name}.rank{index}-of-{count}.jsonl")


class Report:
    """What a rank tells as it goes: one JSON object a line, whole lines only."""

    def __init__(self, rank: Rank, stream: TextIO) -> None:
        self.rank = rank
        self._stream = stream

    def header(self, **facts: Any) -> None:
        """The run: output, prog, mode, model_config, device, patience in seconds, questions (ids) and their digest."""
        self._tell(header=facts)

    def answered(self, place: int, answer: Answered, memory: Mapping[str, Any]) -> None:
        """Question `place` of all (from 0); `memory` is the rank's so far."""
        self._tell(place=place, answer=asdict(answer), memory=dict(memory))

    def memory(self, memory: Mapping[str, Any]) -> None:
        """Source and peak bytes, as in the results."""
        self._tell(memory=dict(memory))

    def ended(self, code: int, message: str) -> None:
        """The last line."""
        self._tell(code=code, message=message)

    def _tell(self, **facts: Any) -> None:
        self._stream.write(line(**facts))
        self._stream.flush()


def line(**facts: Any) -> str:
    """One line of a report."""
    return json.dumps(facts) + "\n"


@dataclass
class Told:
    """What is known of a rank. `code` is None while it is at work; `reason` says why it did not end well."""

    run: str | None = None
    header: dict[str, Any] | None = None
    answers: dict[int, Answered] = field(default_factory=dict)
    memory: dict[str, Any] | None = None
    code: int | None = None
    reason: str = ""


def read_report(text: str) -> Told:
    """The lines of a report; a last one that was cut off is left out."""
    told = Told()
    for each in text.splitlines():
        try:
            facts = json.loads(each)
        except ValueError:
            break
        told.run = facts.get("run", told.run)
        told.header = facts.get("header", told.header)
        told.memory = facts.get("memory", told.memory)
        if "place" in facts:
            told.answers[facts["place"]] = Answered(**facts["answer"])
        if "code" in facts and told.code is None:  # the first reason is the reason
            told.code, told.reason = facts["code"], facts["message"]
    return told


@dataclass(frozen=True)
class Missing:
    """A rank that did not end well, and the ids of its questions without an answer."""

    rank: int
    reason: str
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Gathered:
    """All ranks' results as one. `code` is the whole run's exit code, `header` None where nobody came to its own."""

    header: Mapping[str, Any] | None
    answers: tuple[Answered, ...]
    memory: Mapping[str, Any]
    missing: tuple[Missing, ...]
    code: int

    @property
    def worth_writing(self) -> bool:
        """False for a run that could not begin, as bad input: as without ranks, nothing is written then."""
        return self.header is not None and (self.code != BAD_INPUT or bool(self.answers))

    def as_json(self) -> dict[str, Any]:
        """The results file, as one process writes it; `memory` has each rank's, and `missing` is there if any is."""
        assert self.header is not None
        content = as_json(
            self.answers,
            complete=self.code == FINE,
            mode=self.header["mode"],
            memory=self.memory,
            model_config=self.header["model_config"],
        )
        if self.missing:
            content["missing"] = [asdict(each) for each in self.missing]
        return content

    def problems(self) -> list[str]:
        """A line for each rank that did not end well; a single one where all say the same."""
        reasons = Counter(each.reason for each in self.missing)
        if len(self.missing) > 1 and len(reasons) == 1 and not self.answers:
            return [*reasons]
        return [_problem(each) for each in self.missing]


def gather(ranks: Sequence[Told]) -> Gathered:
    """One result of what rank 0, 1, ... told; a rank of which nothing is known is a `Told()` with a reason."""
    header = next((told.header for told in ranks if told.header is not None), None)
    ids = [] if header is None else header["questions"]
    answers: dict[int, Answered] = {}
    missing, codes = [], set()
    for index, told in enumerate(ranks):
        code, reason = (OUT_OF_MEMORY if told.code is None else told.code), told.reason
        differs = [name for name in _SAME if told.header and header and told.header[name] != header[name]]
        if differs:
            code, reason = BAD_INPUT, f"its {' and '.join(differs)} must be those of the other ranks"
        else:
            answers |= told.answers
        unanswered = [ids[place] for place in range(index, len(ids), len(ranks)) if place not in answers]
        if code != FINE or unanswered:
            missing.append(Missing(index, reason or "ended without a word", tuple(unanswered)))
            codes.add(code or OUR_FAULT)
    in_order = tuple(answers[place] for place in sorted(answers))
    return Gathered(header, in_order, _memory(ranks), tuple(missing), _code(codes))


def _memory(ranks: Sequence[Told]) -> dict[str, Any]:
    """The highest peak of any rank, whose it is, and every rank's own. Absent figures are None."""
    own = [
        {
            "rank": index,
            "device": (told.header or {}).get("device"),
            **(told.memory or {"source": None, "peak_bytes": None}),
        }
        for index, told in enumerate(ranks)
    ]
    worst = max(own, key=lambda each: -1 if each["peak_bytes"] is None else each["peak_bytes"])
    known = worst["peak_bytes"] is not None
    return {
        "source": worst["source"],
        "peak_bytes": worst["peak_bytes"],
        "worst_rank": worst["rank"] if known else None,
        "ranks": own,
    }


def _code(codes: set[int]) -> int:
    """The run's, of those of the ranks that did not end well."""
    if not codes:
        return FINE
    if INTERRUPTED in codes:
        return INTERRUPTED
    if codes == {BAD_INPUT}:
        return BAD_INPUT
    return OUR_FAULT if OUR_FAULT in codes else OUT_OF_MEMORY


def _problem(missing: Missing) -> str:
    names = ", ".join(missing.questions[:5])
    more = f" and {len(missing.questions) - 5} more" if len(missing.questions) > 5 else ""
    left = f"; without an answer: {names}{more}" if missing.questions else "; its questions are all answered"
    return f"rank {missing.rank}: {missing.reason}{left}"
