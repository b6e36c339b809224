"""Reports of the processes that torchrun starts (its ranks), and the one result of all. Imports no torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from llava.eval.results import Answered, as_json, with_earlier
from vram.exit_codes import BAD_INPUT, FINE, INTERRUPTED, OUR_FAULT, OUT_OF_MEMORY

_SAME = ("mode", "model_config", "questions", "digest")  # must be the same in all headers


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
        """Places of its share of `count` questions: every `self.count`th, so that long ones in a row are shared."""
        return range(self.index, count, self.count)

    @property
    def neighbours(self) -> range:
        """The ranks of this one's node, itself included: torchrun numbers them in a row."""
        return range(self.index - self.local, self.index - self.local + self.on_node)

    def file(self, output: Path) -> Path:
        """The file that keeps its answers, beside `output`, until they are all gathered there."""
        return output.with_name(f"{output.name}.rank{self.index}-of-{self.count}.jsonl")

    def __str__(self) -> str:
        return f"rank {self.index} of {self.count}"


class ReportWriter:
    """Writes a rank's report as it goes: one JSON object a line, whole lines only."""

    def __init__(self, rank: Rank, stream: TextIO) -> None:
        self.rank = rank
        self._stream = stream

    def header(self, **facts: Any) -> None:
        """Write what the run is: output, mode, model_config, device, timeout in seconds, questions (ids), digest."""
        self._write(header=facts)

    def answered(self, place: int, answer: Answered, memory: Mapping[str, Any]) -> None:
        """Write the answer to question `place` of all (from 0); `memory` is the rank's so far."""
        self._write(place=place, answer=asdict(answer), memory=dict(memory))

    def memory(self, memory: Mapping[str, Any]) -> None:
        """Write source and peak bytes, as in the results."""
        self._write(memory=dict(memory))

    def ended(self, code: int, message: str) -> None:
        """Write the last line."""
        self._write(code=code, message=message)

    def _write(self, **facts: Any) -> None:
        self._stream.write(line(**facts))
        self._stream.flush()


def line(**facts: Any) -> str:
    """One line of a report."""
    return json.dumps(facts) + "\n"


@dataclass
class RankReport:
    """A rank's report as far as it is known. `code` is None while it is at work; `reason`: why it did not end well."""

    header: dict[str, Any] | None = None
    answers: dict[int, Answered] = field(default_factory=dict)
    memory: dict[str, Any] | None = None
    code: int | None = None
    reason: str = ""


def read_report(text: str) -> RankReport:
    """The report of these lines; a last one that was cut off is left out."""
    report = RankReport()
    for each in text.splitlines():
        try:
            facts = json.loads(each)
        except ValueError:
            break
        report.header = facts.get("header", report.header)
        report.memory = facts.get("memory", report.memory)
        if "place" in facts:
            report.answers[facts["place"]] = Answered(**facts["answer"])
        if "code" in facts and report.code is None:  # the first reason is the reason
            report.code, report.reason = facts["code"], facts["message"]
    return report


@dataclass(frozen=True)
class Missing:
    """A rank that did not end well, and the ids of its questions without an answer."""

    rank: int
    reason: str
    questions: tuple[str, ...]


@dataclass(frozen=True)
class Gathered:
    """All ranks' results as one. `code` is the whole run's exit code; `header` is None where no rank has one."""

    header: Mapping[str, Any] | None
    answers: tuple[Answered, ...]
    memory: Mapping[str, Any]
    missing: tuple[Missing, ...]
    code: int

    @property
    def worth_writing(self) -> bool:
        """False for a run that could not begin, for bad input: nothing is written then, as without ranks."""
        return self.header is not None and (self.code != BAD_INPUT or bool(self.answers))

    def as_json(self) -> dict[str, Any]:
        """Content of the results file: one process's, with each rank's memory, and what is missing if anything is."""
        assert self.header is not None
        content = as_json(
            self.answers,
            complete=self.code == FINE,
            mode=self.header["mode"],
            memory=self.memory,
            model_config=self.header["model_config"],
            questions={"count": len(self.header["questions"]), "digest": self.header["digest"]},
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


def gather(reports: Sequence[RankReport]) -> Gathered:
    """One result of the reports of ranks 0, 1, ...; a silent rank's is a `RankReport()` with a reason."""
    header = next((report.header for report in reports if report.header is not None), None)
    ids = [] if header is None else header["questions"]
    answers: dict[int, Answered] = {}
    missing, codes = [], set()
    for index, report in enumerate(reports):
        code, reason = (OUT_OF_MEMORY if report.code is None else report.code), report.reason
        differs = [name for name in _SAME if report.header and header and report.header[name] != header[name]]
        if differs:
            code, reason = BAD_INPUT, f"its {' and '.join(differs)} must be those of the other ranks"
        else:
            answers |= report.answers
        unanswered = [ids[place] for place in range(index, len(ids), len(reports)) if place not in answers]
        if code != FINE or unanswered:
            missing.append(Missing(index, reason or "ended without a word", tuple(unanswered)))
            codes.add(code or OUR_FAULT)
    in_order = tuple(answers[place] for place in sorted(answers))
    memory = with_earlier(_memory(reports), (header or {}).get("earlier"))
    return Gathered(header, in_order, memory, tuple(missing), _code(codes))


def _memory(reports: Sequence[RankReport]) -> dict[str, Any]:
    """The highest peak of all ranks, the rank that has it, and every rank's own. Absent figures are None."""
    own = [
        {
            "rank": index,
            "device": (report.header or {}).get("device"),
            **(report.memory or {"source": None, "peak_bytes": None}),
        }
        for index, report in enumerate(reports)
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
    """The run's exit code, from those of the ranks that did not end well."""
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
