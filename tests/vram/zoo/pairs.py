"""Pairs of the zoo: one file is two versions of a project's code, before and after a regression of its peak.

Lines that end in `# base` are in the first version alone, those that end in `# head` in the second. Comments at the
head say what is expected of the piece that moved most: `# category:`, `# module:` (nothing for none), and `# line:`
where the line is a library's; else it is the one with `# here`, and where there is none, memory from before the
sample. In what is expected `*` stands for anything. `# way out:` names the pattern of the one suggestion for the second
version, which leads back to the first; `# way out of the base:` that of the first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vram
from tests.vram.zoo.cases import ZOO
from vram.explanation.peak import breakdown
from vram.summary.breakdown import Breakdown, from_json

PAIRS = sorted((ZOO / "regressions").glob("*.py"))


@dataclass(frozen=True)
class Pair:
    """A file's two versions, and what is expected of the difference."""

    name: str
    base: str
    head: str
    category: str
    module: str
    line: str
    way_out: str
    base_way_out: str


def read_pair(path: Path) -> Pair:
    """Read one file."""
    source = path.read_text(encoding="utf-8")
    expected = {
        key: words.strip()
        for key, words in re.findall(
            r"^# (category|module|line|way out|way out of the base):(.*)$", source, re.MULTILINE
        )
    }
    base, head = (
        "\n".join(line for line in source.splitlines() if f"# {other}" not in line) for other in ("head", "base")
    )
    here = [number for number, line in enumerate(head.splitlines(), start=1) if "# here" in line]
    line = expected.get("line") or (f"*{path.name}:{here[0]} *" if here else "")
    ways_out = expected.get("way out", ""), expected.get("way out of the base", "")
    return Pair(path.stem, base, head, expected["category"], expected["module"], line, *ways_out)


def broken_down(source: str, name: str) -> tuple[Breakdown, list[dict[str, Any]]]:
    """The peak of a version, in pieces, and suggestions. The step and all it uses are gone afterwards."""
    names: dict[str, Any] = {"__name__": name}
    exec(compile(source, f"{name}.py", "exec"), names)  # noqa: S102 - a file of ours
    recording = vram.replay(names["step"], [names["SAMPLE"]], laps=1, name=name)
    at_peak, why = breakdown(recording)
    assert at_peak is not None, why
    assert "breakdown" in at_peak, at_peak["no_breakdown"]
    found = from_json(at_peak["breakdown"])
    assert found is not None
    return found, at_peak.get("suggestions", [])
