"""Plain data (schema 1), as `vram compare --json` and `vram history --json` print it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vram.history.compare import Change, Comparison, Judged
from vram.history.criteria import figures
from vram.history.entries import Entry
from vram.history.gate import open_text
from vram.history.keys import Key, name_of
from vram.history.runs import History, Run, steps_of

SCHEMA = 1


def comparison_data(comparison: Comparison, head: Run, base: str, code: int, history: History) -> dict[str, Any]:
    """A comparison of `head` with what `base` names, and the exit code that it ends with."""
    earlier = history.before(head)
    return {
        "schema": SCHEMA,
        "head": _run(head),
        "base": base,
        "exit_code": code,
        "entries": [_judged(judged, earlier) for judged in comparison.judged],
        "gone": [{"name": one.entry.name, "key": dict(one.entry.key), "run": one.run} for one in comparison.gone],
        "skipped": list(history.skipped),
    }


def history_data(
    runs_by_key: Mapping[Key, Sequence[tuple[Run, Entry]]], last: int, skipped: Sequence[str]
) -> dict[str, Any]:
    """The `last` runs of each key (0: all), and the steps over all of its runs."""
    keys = [
        {
            "name": name_of(key),
            "key": dict(key),
            "runs": [_measured(run, entry) for run, entry in (runs[-last:] if last else runs)],
            "steps": {
                figure: [{**asdict(step), "run": runs[step.index][0].stem} for step in steps]
                for figure, steps in steps_of(runs).items()
            },
        }
        for key, runs in runs_by_key.items()
    ]
    return {"schema": SCHEMA, "keys": keys, "skipped": list(skipped)}


def _run(run: Run) -> dict[str, Any]:
    return {"run": run.stem, "path": run.path, "time": run.time, "commit": run.commit, "dirty": run.dirty}


def _measured(run: Run, entry: Entry) -> dict[str, Any]:
    return {
        **_run(run),
        "verdict": entry.verdict,
        "outcome": entry.outcome_text,
        "accepted": entry.accepted,
        "figures": dict(figures(entry)),
    }


def _judged(judged: Judged, earlier: History) -> dict[str, Any]:
    return {
        "name": judged.entry.name,
        "test": judged.entry.test,
        "key": dict(judged.entry.key),
        "status": judged.status,
        "changes": [_change(change) for change in judged.changes],
        "difference": None if judged.difference is None else judged.difference.to_json(),
        "why": open_text(judged, earlier) if judged.status in ("new", "inconclusive") else "",
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        "figure": change.figure,
        "base": change.base,
        "head": change.head,
        "base_run": change.base_run,
        "tolerance": None if change.criterion is None else change.criterion.tolerance,
        "status": change.status,
        "text": str(change),
    }
