"""`vram diff`: the peaks of two recordings of one run, piece by piece: where a mode saves, and where it costs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from vram.escaping import json_text, shown
from vram.exit_codes import FINE
from vram.files import is_file
from vram.history import store
from vram.history.keys import NAMES
from vram.history.runs import Run
from vram.summary.breakdown import OUTSIDE, Breakdown, Piece
from vram.summary.difference import Difference, difference, signed
from vram.summary.reader import read_run
from vram.text import fitted, size_text

SUMMARY = "say where the peak of one recording differs from that of another of the same run"
DIFF = """Say how the peak of the recording HEAD differs from that of BASE, both of one run: by category, module and
line of code. A recording is called by its name (a mode, as in vram diff baseline himap) or by its test. What is more in
the one and less in the other adds up to the difference, to the byte."""
EXITS = "exit codes: 0 compared, 2 no such run or recording, or one whose peak was not broken down"
_MOST_PIECES = 20


def add_diff(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vram diff`."""
    parser.add_argument("base", metavar="BASE", help="the recording to compare with")
    parser.add_argument("head", metavar="HEAD", help="the recording that is compared")
    parser.add_argument(
        "--run", dest="of_run", metavar="RUN", help="the saved run, as vram compare takes it (default: the newest)"
    )
    parser.add_argument("--report", type=Path, metavar="JSON", help="what --vram-report wrote, instead of a saved run")
    parser.add_argument("--lines", type=int, default=_MOST_PIECES, metavar="N", help="pieces (default 20; 0: all)")
    parser.add_argument(
        "--storage", default=store.DEFAULT, metavar="URI", help="where runs are saved (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def diff(arguments: argparse.Namespace) -> tuple[int, str]:
    """Exit code and text of `vram diff BASE HEAD`. Raises ValueError for what is not there."""
    if arguments.lines < 0:
        raise ValueError(f"--lines must be a whole number of at least 0, got {arguments.lines}")
    source, known = _of_report(arguments.report) if arguments.report else _of_run(arguments)
    base, head = (_named(name, known, source) for name in (arguments.base, arguments.head))
    if base.by_line_alone != head.by_line_alone:
        raise ValueError(
            f"{arguments.base} and {arguments.head} must both be recordings or both marked tests: the peak of a marked "
            "test is that above its start"
        )
    found = difference(base, head)
    if arguments.json:
        data = {"schema": 1, "source": source, "base": arguments.base, "head": arguments.head, **found.to_json()}
        return FINE, json_text(data)
    title = f"{arguments.head} beside {arguments.base}, {source}: {found.lines(1)[0]}"
    return FINE, "\n".join(map(shown, [title, "", *_text(found, arguments.lines)])).rstrip()


def _of_report(path: Path) -> tuple[str, dict[str, Breakdown | None]]:
    run = read_run(path)
    return str(path), {
        **{test.test: test.breakdown for test in run.tests},
        **{one.name: one.breakdown for one in run.recordings},
    }


def _of_run(arguments: argparse.Namespace) -> tuple[str, dict[str, Breakdown | None]]:
    name = arguments.of_run
    if name is not None and is_file(name):
        run = store.read_file(Path(name))
    else:
        history = store.read(arguments.storage)
        if name is None and not history.runs:
            raise ValueError(f"no run with memory figures is saved in {arguments.storage}; --report takes a report")
        run = history.find(name) if name is not None else history.runs[-1]
    return f"run {run.stem}", _by_name(run)


def _by_name(run: Run) -> dict[str, Breakdown | None]:
    known: dict[str, Breakdown | None] = {}
    for entry in run.entries:
        facts = dict(entry.key)
        for name in {entry.name, *(facts[name] for name in NAMES if name in facts)}:
            known[name] = known.get(name) or entry.in_pieces
    return known


def _named(name: str, known: Mapping[str, Breakdown | None], source: str) -> Breakdown:
    if name not in known:
        raise ValueError(f"no recording of {source} is called {name}: there are {', '.join(known) or 'none'}")
    found = known[name]
    if found is None:
        raise ValueError(f"the peak of {name} was not broken down in {source}: run pytest with --vram-breakdown")
    return found


def _text(found: Difference, most_pieces: int) -> list[str]:
    """Tables by category and by module, where these are known, then pieces."""
    lines = []
    if not found.head.by_line_alone:
        lines += _table("category", found, lambda piece: piece.category)
        lines += ["", *_table("module", found, lambda piece: piece.module or OUTSIDE), ""]
    pieces = found.lines(most_pieces + 1 if most_pieces else len(found.moved) + 1)[1:]
    return [*lines, *(line.removeprefix("  ") for line in pieces)]


def _table(head: str, found: Difference, name: Callable[[Piece], str]) -> list[str]:
    rows = [
        (each, size_text(before), size_text(now), signed(now - before))
        for each, (before, now) in found.beside(name).items()
        if now != before
    ]
    return fitted([(head, "base", "head", "more"), *rows], 0)
