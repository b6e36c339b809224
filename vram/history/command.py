"""`vram history` and `vram compare`: what they take, print and exit with."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from vram.escaping import json_text, shown
from vram.exit_codes import FINE, INCONCLUSIVE, REGRESSION
from vram.files import is_file
from vram.history import store
from vram.history.compare import Comparison
from vram.history.criteria import Criterion, parse
from vram.history.json_form import comparison_data, history_data
from vram.history.keys import Key
from vram.history.runs import RECORDED, History, Run, with_recorded, with_run, with_the_one_before
from vram.history.terminal import comparison_lines, key_lines
from vram.text import Paint, colours, terminal_columns


def _filled(*paragraphs: str) -> str:
    return "\n\n".join(textwrap.fill(" ".join(paragraph.split()), 90) for paragraph in paragraphs)


_RUNS = """Name a run by its number (3 or 0003; MACHINE/0003 where several machines share a store), by the name it was
saved under, by the beginning of its commit, or by a path. pytest --benchmark-autosave saves runs."""

COMPARE = _filled(
    """Compare a run with its base, key by key. A key says what was measured, and on which device, driver, torch and
    model. Different keys are never compared. A key without a base is new, which is not a pass.""",
    _RUNS,
    """Without BASE, the newest run is compared with the one before it; where a tolerance is given, also with the last
    run that was the first, was accepted or was reported as over, because small steps that each pass may add up to a
    regression. BASE "recorded" means, for each key, the newest run that was accepted (pytest --benchmark-autosave
    --vram-accept), else the first.""",
    """Without --fail, every exact figure is compared to the byte; so is every mode and test that no --fail is about.
    Noisy figures (driver and host; on a real card also reserved and allocated) are reported and never fail.""",
    """--fail new and --fail missing fail what can't be compared: a recording that was renamed is both. With BASE
    "recorded", what is missing is what the newest accepted run, or a run since, measured in the same environment.""",
)
EXITS = (
    "exit codes: 0 no regression, 1 regression (or what --fail new and --fail missing fail), 2 bad usage, "
    "3 nothing comparable (a single run, only new keys)"
)
HISTORY = _filled(
    "List the saved runs by key: each run's figures, and from which run on a figure is what it is now.", _RUNS
)
FAIL = (
    "what fails, as [MODE or TEST/]FIGURE:TOLERANCE, for example peak:2%%, growth:0 or himap/peak:1MiB; FIGURE is "
    "peak, growth (bytes a sample), peak_above_start or an exact channel; exactly the tolerance still passes; may be "
    "repeated; or new, where a key has no base, or missing, where a key of the base was not measured"
)
ABSENT = ("new", "missing")  # what --fail takes beside criteria


def add_compare(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vram compare`."""
    parser.add_argument("base", nargs="?", metavar="BASE", help="the run to compare with (default: the one before)")
    parser.add_argument("head", nargs="?", metavar="HEAD", help="the run that is judged (default: the newest)")
    parser.add_argument("--fail", action="append", default=[], metavar="CRITERION", help=FAIL)
    _common(parser)


def add_history(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vram history`."""
    parser.add_argument(
        "--key", action="append", default=[], metavar="TEXT", help="only keys with this in them; may be repeated"
    )
    parser.add_argument("--last", type=int, default=10, metavar="N", help="runs a key (default 10; 0: all)")
    _common(parser)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage",
        default=store.DEFAULT,
        metavar="URI",
        help="where runs are saved, as pytest's --benchmark-storage (default %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def compare(arguments: argparse.Namespace) -> tuple[int, str]:
    """Exit code and text of `vram compare [BASE] [HEAD]`. Raises ValueError for a run or a store that can't be read."""
    code, text, _ = compared(arguments)
    return code, text


def compared(arguments: argparse.Namespace) -> tuple[int, str, Sequence[str]]:
    """Exit code and text of `vram compare`, and which of "new" and "missing" there are. Raises ValueError as it."""
    criteria = [parse(text) for text in arguments.fail if text not in ABSENT]
    history = _history(arguments)
    head = _head(arguments, history)
    if head is None:
        _warn(history)
        return INCONCLUSIVE, f"nothing comparable: no run with memory figures is saved in {arguments.storage}", ()
    comparison, base = _compared(arguments.base, head, history, criteria)
    _check_names(criteria, history, head)
    failed_by = ["regression"] * comparison.regressed
    failed_by += [what for what in comparison.absent if what in arguments.fail]
    code = REGRESSION if failed_by else FINE if comparison.comparable else INCONCLUSIVE
    _warn(history)
    if arguments.json:
        data = comparison_data(comparison, head, base, code, history)
        return code, json_text({**data, "failed_by": failed_by}), comparison.absent
    lines = comparison_lines(comparison, head, base, code, history.before(head), *_terminal())
    return code, "\n".join(lines), comparison.absent


def _head(arguments: argparse.Namespace, history: History) -> Run | None:
    """The run that is judged: HEAD, else the newest; None where none is saved."""
    if arguments.head is not None:
        return _run(arguments.head, history)
    return history.runs[-1] if history.runs else None


def _compared(name: str | None, head: Run, history: History, criteria: Sequence[Criterion]) -> tuple[Comparison, str]:
    """`head` beside what BASE names, and that in words."""
    if name is None:
        return with_the_one_before(history, head, criteria), "the run before"
    if name == RECORDED:
        return with_recorded(history, head, criteria), "its recorded base"
    base = _run(name, history)
    return with_run(base, head, criteria), base.stem


def _history(arguments: argparse.Namespace) -> History:
    """The store's; none is needed where BASE and HEAD are paths."""
    named = [getattr(arguments, name, None) for name in ("base", "head")]
    if all(name is not None and is_file(name) for name in named):
        return History(())
    return store.read(arguments.storage)


def _run(name: str, history: History) -> Run:
    return store.read_file(Path(name)) if is_file(name) else history.find(name)


def _check_names(criteria: Sequence[Criterion], history: History, head: Run) -> None:
    """Raise ValueError for a criterion that concerns nothing: a gate that is silently open."""
    for criterion in criteria:
        if not any(criterion.concerns(entry) for entry in head.entries) and not any(
            criterion.concerns(entry) for run in history.runs for entry in run.entries
        ):
            raise ValueError(f"no mode or test of any run is called {criterion.name}")


def _warn(history: History) -> None:
    for warning in history.skipped:
        print(shown(f"vram: {warning}"), file=sys.stderr)


def history(arguments: argparse.Namespace) -> tuple[int, str]:
    """Exit code and text of `vram history`. Raises ValueError for what can't be read."""
    if arguments.last < 0:
        raise ValueError(f"--last must be a whole number of at least 0, got {arguments.last}")
    saved = store.read(arguments.storage)
    _warn(saved)
    by_key = {key: runs for key, runs in saved.by_key.items() if all(_matches(key, text) for text in arguments.key)}
    if not by_key:
        which = f" with {' and '.join(arguments.key)} in its key" if arguments.key else ""
        return INCONCLUSIVE, f"nothing measured{which} is saved in {arguments.storage}"
    if arguments.json:
        return FINE, json_text(history_data(by_key, arguments.last, saved.skipped))
    lines = [line for key, runs in by_key.items() for line in key_lines(key, runs, arguments.last, _terminal()[0])]
    return FINE, "\n".join(lines).rstrip()


def _matches(key: Key, text: str) -> bool:
    """Whether `text` is in some value of the key, or is one of its facts ("mode=himap")."""
    fact, equals, value = text.partition("=")
    return (bool(equals) and (fact, value) in key) or any(text in value for _, value in key)


def _terminal() -> tuple[int, Paint]:
    """How wide the terminal is (0: not known), and how to paint on it."""
    is_terminal = sys.stdout.isatty()
    return terminal_columns(is_terminal), colours(is_terminal)
