"""Run the whole zoo some times in a row, each in a process of its own, and count the right answers by case."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from tests.vram.zoo.cases import KINDS, ZOO, Case, cases
from tests.vram.zoo.page import page

_ROOT = ZOO.parents[2]


def right_answers(junit: Path) -> set[str]:
    """Names of the cases that passed, of one run's JUnit report; one that is known to go wrong is none of them."""
    passed = set()
    for test in ElementTree.parse(junit).iter("testcase"):  # noqa: S314 - our own file
        if not {"failure", "error", "skipped"} & {child.tag for child in test}:
            passed.add(test.get("name", "").partition("[")[2].removesuffix("]"))
    return passed


def run_once(selected: Sequence[str]) -> set[str]:
    """Run the zoo in a process of its own; the names of the cases that were right."""
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "zoo.xml"
        modules = [str(ZOO / f"test_{kind}.py") for kind in KINDS]
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--full",
            "--no-header",
            "--tb=short",
            f"--junit-xml={junit}",
            *modules,
        ]
        ended = subprocess.run([*command, *selected], cwd=_ROOT, check=False, capture_output=True, text=True)
        if ended.returncode:
            print(ended.stdout + ended.stderr, flush=True)
        return right_answers(junit) if junit.exists() else set()


def table(every: Sequence[Case], right: Counter[str], runs: int) -> list[str]:
    """One line a case: its name, kind, what is expected, and right answers of all."""
    rows = [("case", "kind", "expected", "right")]
    rows += [(case.name, case.kind, case.expect, f"{right[case.name]} of {runs}") for case in every]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 where any answer was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.vram.zoo", description=__doc__)
    parser.add_argument("--repeat", type=int, default=1, help="runs in a row (default 1)")
    parser.add_argument("-k", metavar="WORD", help="only the cases with this in their names")
    parser.add_argument("--table", action="store_true", help="run nothing; print docs/zoo.md as it should be")
    options = parser.parse_args(arguments)
    if options.table:
        print(page(), end="")
        return 0
    every = [case for kind in KINDS for case in cases(kind)]
    if options.k:
        every = [case for case in every if options.k in case.name]
    right: Counter[str] = Counter()
    for number in range(options.repeat):
        names = run_once(["-k", options.k] if options.k else [])
        right.update(names)
        print(f"run {number + 1}: {len(names)} of {len(every)} right", flush=True)
    print("\n".join(table(every, right, options.repeat)))
    return 0 if all(right[case.name] == options.repeat for case in every) else 1


if __name__ == "__main__":
    sys.exit(main())
