"""A case of the zoo: a test file of somebody's project, with what is expected of it in comments.

The first line of the file says what is planted. Comments at its head say what is expected:

`# expect:` what the plugin says: the verdict (grows, undecided, plateau, stable) or `inconclusive`, or, of a test
without one, the error's name (PeakExceeded) or `passed`;
`# holder:` who keeps it, in the words of the explanation; `nobody` where only the peak grows;
`# line:` the line that allocates, where it is a library's: the caller is then the line that ends in `# here`;
`# says:` what else the failure must say; `# host:` the verdict on the host's memory;
`# suggests:` the patterns of the suggestions that are made; without it none is;
`# device:` where it is measured, the CPU if it does not say;
`# fault:` what the plugin gets wrong today, where it does: the case still says what is right.

In what is expected `*` stands for anything. A comment goes on in lines that are indented further.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ZOO = Path(__file__).parent
KINDS = {"leaks": "leak", "peaks": "raised peak", "decoys": "decoy"}
VERDICTS = ("stable", "plateau", "grows", "undecided")
_KEYS = ("expect", "holder", "line", "says", "host", "suggests", "device", "fault")


@dataclass(frozen=True)
class Case:
    """One file. `line` is a pattern of the line that allocates, None where the line marked `# here` is meant."""

    name: str
    kind: str
    path: Path
    promise: str
    expect: str
    holder: str | None
    line: str | None
    says: tuple[str, ...]
    host: str | None
    suggests: str
    device: str
    fault: str | None
    here: int | None

    @property
    def judged(self) -> bool:
        """Whether the case replays samples, and so has a verdict."""
        return self.expect in VERDICTS

    @property
    def sorts(self) -> set[tuple[str, str]]:
        """Everything that it expects, by its sort: of a holder the first words, of suggestions each."""
        holder = re.split(r"[`(*\[:]", self.holder or "")[0].strip()
        sorts = {("expect", self.expect), ("holder", holder), ("device", self.device), ("host", self.host or "")}
        return sorts | {("suggests", each) for each in self.suggests.split(", ")}

    @property
    def of_a_model(self) -> bool:
        """Whether it imports a model library."""
        return any(line.startswith("from tiny ") for line in self.path.read_text(encoding="utf-8").splitlines())

    @property
    def passes(self) -> bool:
        """Whether the test in the file is expected to pass."""
        return self.expect in ("passed", "stable", "plateau")


def read_case(path: Path) -> Case:
    """Read one file. Raises ValueError where it does not say what is expected."""
    source = path.read_text(encoding="utf-8")
    said: dict[str, list[str]] = {key: [] for key in _KEYS}
    for key, words in re.findall(r"^# (\w+): (.+(?:\n#   .+)*)", source, flags=re.MULTILINE):
        if key not in said:
            raise ValueError(f"{path.name}: a comment at the head must be one of {', '.join(_KEYS)}, got {key!r}")
        said[key].append(re.sub(r"\n#\s+", " ", words))
    promise = ast.get_docstring(ast.parse(source))
    if promise is None or len(said["expect"]) != 1:
        raise ValueError(f"{path.name}: a case must have a docstring and one `# expect:`, got {said['expect']}")
    here = [number for number, line in enumerate(source.splitlines(), start=1) if "# here" in line]
    if said["holder"] and len(here) != 1:
        raise ValueError(f"{path.name}: a case with a holder must have one line marked `# here`, got {len(here)}")
    one = {key: words[0] if words else None for key, words in said.items()}
    return Case(
        name=path.stem,
        kind=KINDS[path.parent.name],
        path=path,
        promise=" ".join(promise.split()),
        expect=said["expect"][0],
        holder=one["holder"],
        line=one["line"],
        says=tuple(said["says"]),
        host=one["host"],
        suggests=one["suggests"] or "",
        device=one["device"] or "cpu",
        fault=one["fault"],
        here=here[0] if here else None,
    )


def cases(kind: str) -> list[Case]:
    """All cases of a folder of KINDS, by name."""
    return [read_case(path) for path in sorted((ZOO / kind).glob("*.py"))]


def witnesses(every: Sequence[Case]) -> set[str]:
    """Names of the cases that every push runs; the others run with --full alone.

    Those with something to expect that none before them has, and every sixth of the others: `every` is by name.
    """
    seen: set[tuple[str, str]] = set()
    found, others = set(), []
    for case in every:
        if case.sorts <= seen:
            others.append(case.name)
        else:
            found.add(case.name)
        seen |= case.sorts
    return found | set(others[::6])


def matches(pattern: str, text: str) -> bool:
    """Whether the whole of `text` is as `pattern` says, where `*` stands for anything."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, flags=re.DOTALL) is not None
