"""`vram history` and `vram compare`: what they take, print and exit with."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vram.exit_codes import FINE, INCONCLUSIVE, REGRESSION
from vram.history import store
from vram.history.compare import MEMORY, Change, Comparison, Judged
from vram.history.criteria import GROWTH, PEAK, Criterion, figures, parse
from vram.history.entries import Entry
from vram.history.gate import open_text
from vram.history.keys import Key, name_of, place_of
from vram.history.runs import RECORDED, History, Run, steps_of, with_recorded, with_run, with_the_one_before
from vram.history.steps import Step
from vram.text import aligned, apart, exact_text, rate_text, size_text


def _filled(*paragraphs: str) -> str:
    return "\n\n".join(textwrap.fill(" ".join(paragraph.split()), 90) for paragraph in paragraphs)


_RUNS = """A run is named by its number (3 or 0003; MACHINE/0003 where several machines share a store), by the name it
was saved under, by the beginning of its commit, or by a path. Runs are saved by pytest --benchmark-autosave."""

COMPARE = _filled(
    """Compare a run with its base, key by key: what was measured, on which device, driver, torch, model. Different keys
    are never compared; a key without a base is new, which is not passed.""",
    _RUNS,
    """Without BASE, the newest run is held to the one before it; where a tolerance is given also to the last run that
    was the first, accepted, or over: small steps that each pass may not add up to a regression. BASE "recorded" is, of
    each key, the newest run that was accepted (pytest --benchmark-autosave --vram-accept), else the first.""",
    """Without --fail every exact figure is compared to the byte, and so is what no --fail is about. Noisy
    figures (driver, host, on a real card reserved and allocated) are told and decide nothing.""",
)
EXITS = "exit codes: 0 no regression, 1 regression, 2 bad usage, 3 nothing comparable (a single run, only new keys)"
HISTORY = _filled("List what is saved, by key: figures of each run, and since which run they are what they are.", _RUNS)
FAIL = (
    "what fails, [MODE or TEST/]FIGURE:TOLERANCE: peak:2%%, growth:0, himap/peak:1MiB; FIGURE is peak, growth (bytes a "
    "sample), peak_above_start or an exact channel; what is allowed exactly still passes; may be repeated"
)


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
    """Exit code and text of `vram compare [BASE] [HEAD]`. Raises ValueError for what can't be read or found."""
    criteria = [parse(text) for text in arguments.fail]
    history, head = _history(arguments), None
    if arguments.head is not None:
        head = _run(arguments.head, history)
    elif history.runs:
        head = history.runs[-1]
    if head is None:
        _warn(history)
        return INCONCLUSIVE, f"nothing comparable: no run with memory figures is saved in {arguments.storage}"
    if arguments.base is None:
        comparison, base = with_the_one_before(history, head, criteria), "the run before"
    elif arguments.base == RECORDED:
        comparison, base = with_recorded(history, head, criteria), "its recorded base"
    else:
        run = _run(arguments.base, history)
        comparison, base = with_run(run, head, criteria), run.stem
    _known(criteria, history, head)
    code = REGRESSION if comparison.regressed else FINE if comparison.comparable else INCONCLUSIVE
    _warn(history)
    if arguments.json:
        return code, json.dumps(_comparison_json(comparison, head, base, code, history), indent=1)
    return code, "\n".join(_comparison_text(comparison, head, base, code, history.before(head)))


def _history(arguments: argparse.Namespace) -> History:
    """The store's; none is needed where BASE and HEAD are paths."""
    named = [getattr(arguments, name, None) for name in ("base", "head")]
    if all(name is not None and Path(name).is_file() for name in named):
        return History(())
    return store.read(arguments.storage)


def _run(name: str, history: History) -> Run:
    path = Path(name)
    return store.read_file(path) if path.is_file() else history.find(name)


def _known(criteria: Sequence[Criterion], history: History, head: Run) -> None:
    """A criterion that concerns nothing would be a gate that is silently open."""
    for criterion in criteria:
        if not any(criterion.concerns(entry) for entry in head.entries) and not any(
            criterion.concerns(entry) for run in history.runs for entry in run.entries
        ):
            raise ValueError(f"no mode or test of any run is called {criterion.name}")


def _warn(history: History) -> None:
    for warning in history.skipped:
        print(f"vram: {warning}", file=sys.stderr)


def _comparison_text(comparison: Comparison, head: Run, base: str, code: int, earlier: History) -> list[str]:
    lines = [f"{_title(head)}, compared with {base}", ""]
    rows = [row for judged in comparison.judged for row in _rows(judged)]
    if rows:
        lines += [*aligned([("what", "figure", "base", "head", "change", "allowed", "run", "verdict"), *rows]), ""]
    by_status: dict[str, list[Judged]] = {}
    for judged in comparison.judged:
        by_status.setdefault(judged.status, []).append(judged)
    for status in ("new", "inconclusive"):
        lines += [open_text(judged, earlier) for judged in by_status.get(status, ())]
    lines += [f"{one.entry.name}: in {one.run}, not measured in this run" for one in comparison.gone]
    changes = [(judged, change) for judged in comparison.judged for change in judged.changes]
    lines += [f"{judged.entry.name}: {change}" for judged, change in changes if change.status == "drifted"]
    count = ", ".join(f"{len(found)} {status}" for status, found in sorted(by_status.items()))
    verdict = {FINE: "no regression", REGRESSION: "regression", INCONCLUSIVE: "nothing comparable"}[code]
    return [*lines, f"{verdict}: {count or 'nothing measured'}"]


def _rows(judged: Judged) -> list[tuple[str, ...]]:
    """The peak, and what is held to a criterion or differs."""
    return [
        (
            judged.entry.name,
            change.figure,
            *apart(change.base, change.head),
            _change(change),
            "-" if change.criterion is None else change.criterion.tolerance,
            change.base_run.removeprefix("run "),
            change.status,
        )
        for change in judged.changes
        if change.figure in (PEAK, MEMORY)
        or change.base != change.head
        or (change.figure == GROWTH and change.criterion)
    ]


def _change(change: Change) -> str:
    if change.base is None or change.head is None:
        return "-"
    more = change.head - change.base
    share = f" ({more / abs(change.base):+.2%})" if change.base and more else ""
    return f"{more:+,.1f}".replace(".0", "", 1) + " B" + share if more else "0 B"


def _title(run: Run) -> str:
    commit = f", commit {run.commit[:12]}{' with changes' if run.dirty else ''}" if run.commit else ""
    return f"run {run.stem} of {run.time[:16].replace('T', ' ')}{commit}"


def _comparison_json(comparison: Comparison, head: Run, base: str, code: int, history: History) -> dict[str, Any]:
    return {
        "schema": 1,
        "head": _run_json(head),
        "base": base,
        "exit_code": code,
        "entries": [
            {
                "name": judged.entry.name,
                "test": judged.entry.test,
                "key": dict(judged.entry.key),
                "status": judged.status,
                "changes": [
                    {
                        "figure": change.figure,
                        "base": change.base,
                        "head": change.head,
                        "base_run": change.base_run,
                        "tolerance": None if change.criterion is None else change.criterion.tolerance,
                        "status": change.status,
                        "text": str(change),
                    }
                    for change in judged.changes
                ],
                "why": open_text(judged, history.before(head)) if judged.status in ("new", "inconclusive") else "",
            }
            for judged in comparison.judged
        ],
        "gone": [{"name": one.entry.name, "key": dict(one.entry.key), "run": one.run} for one in comparison.gone],
        "skipped": list(history.skipped),
    }


def _run_json(run: Run) -> dict[str, Any]:
    return {"run": run.stem, "path": run.path, "time": run.time, "commit": run.commit, "dirty": run.dirty}


def history(arguments: argparse.Namespace) -> tuple[int, str]:
    """Exit code and text of `vram history`. Raises ValueError for what can't be read."""
    if arguments.last < 0:
        raise ValueError(f"--last must be a whole number of at least 0, got {arguments.last}")
    saved = store.read(arguments.storage)
    _warn(saved)
    wanted = {key: runs for key, runs in saved.by_key.items() if all(_has(key, text) for text in arguments.key)}
    if not wanted:
        which = f" with {' and '.join(arguments.key)} in its key" if arguments.key else ""
        return INCONCLUSIVE, f"nothing measured{which} is saved in {arguments.storage}"
    if arguments.json:
        return FINE, json.dumps(_history_json(wanted, saved, arguments.last), indent=1)
    lines = [line for key, runs in wanted.items() for line in _key_text(key, runs, arguments.last)]
    return FINE, "\n".join(lines).rstrip()


def _has(key: Key, text: str) -> bool:
    """ "himap", or "mode=himap" for exactly that fact."""
    fact, equals, value = text.partition("=")
    return (bool(equals) and (fact, value) in key) or any(text in value for _, value in key)


def _key_text(key: Key, runs: Sequence[tuple[Run, Entry]], last: int) -> list[str]:
    steps = steps_of(runs)
    stepped = {step.index: figure for figure, found in steps.items() for step in found}
    first = max(0, len(runs) - last) if last else 0
    rows = [("run", "date", "commit", "peak", "growth/sample", "outcome", "")]
    for index, (run, entry) in enumerate(runs[first:], start=first):
        told = figures(entry)
        notes = ["accepted"] if entry.accepted else []
        notes += [f"step in {', '.join(figure for figure, found in steps.items() if _at(found, index))}"] * (
            index in stepped
        )
        rows.append(
            (
                run.number,
                run.time[:16].replace("T", " "),
                run.commit[:8] + ("+" if run.dirty else ""),
                size_text(told.get(PEAK)),
                rate_text(told.get(GROWTH)),
                entry.outcome_text,
                ", ".join(notes),
            )
        )
    lines = [name_of(key), f"  {place_of(key)}", *(f"  {row}" for row in aligned(rows))]
    if first:
        lines.append(f"  and {first} earlier runs (--last 0 shows them)")
    said: list[list[Step]] = []
    for figure, found in steps.items():
        if found in said:  # a channel that says what another has said
            continue
        said.append(found)
        for step in found:
            run = runs[step.index][0]
            since = f" ({run.commit[:12]})" if run.commit else ""
            lines.append(
                f"  {figure}: {exact_text(step.before)} -> {exact_text(step.after)} since run {run.number}{since}"
            )
    return [*lines, ""]


def _at(steps: Sequence[Step], index: int) -> bool:
    return any(step.index == index for step in steps)


def _history_json(wanted: Mapping[Key, Sequence[tuple[Run, Entry]]], saved: History, last: int) -> dict[str, Any]:
    return {
        "schema": 1,
        "keys": [
            {
                "name": name_of(key),
                "key": dict(key),
                "runs": [
                    {
                        **_run_json(run),
                        "verdict": entry.verdict,
                        "outcome": entry.outcome_text,
                        "accepted": entry.accepted,
                        "figures": dict(figures(entry)),
                    }
                    for run, entry in (runs[-last:] if last else runs)
                ],
                "steps": {
                    figure: [{**asdict(step), "run": runs[step.index][0].stem} for step in found]
                    for figure, found in steps_of(runs).items()
                },
            }
            for key, runs in wanted.items()
        ],
        "skipped": list(saved.skipped),
    }
