"""Tables for people, as `vram compare` and `vram history` print them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from vram.escaping import shown
from vram.exit_codes import FINE, INCONCLUSIVE, REGRESSION
from vram.history.compare import Change, Comparison, Judged
from vram.history.criteria import GROWTH, PEAK, figures
from vram.history.entries import Entry
from vram.history.gate import missing_text, open_text
from vram.history.keys import Key, name_of, place_of
from vram.history.runs import History, Run, steps_of
from vram.history.steps import Step
from vram.text import (
    BAD,
    GOOD,
    NO_FIGURE,
    OPEN,
    Paint,
    apart,
    exact_text,
    fitted,
    rate_text,
    size_text,
    unpainted,
)

_COMPARED = ("what", "figure", "base", "head", "change", "allowed", "run", "verdict")
_SAVED = ("run", "date", "commit", "peak", "growth/sample", "outcome", "")
_TONES = {"regressed": BAD, "drifted": BAD, "within": GOOD, "improved": GOOD, "same": GOOD, "not measured": OPEN}
_IN_WORDS = {FINE: "no regression", REGRESSION: "regression", INCONCLUSIVE: "nothing comparable"}


def comparison_lines(
    comparison: Comparison, head: Run, base: str, code: int, earlier: History, width: int = 0, paint: Paint = unpainted
) -> list[str]:
    """A comparison of `head` with what `base` names: a row a figure, then what was not compared, then the verdict.

    `width` is that of the terminal, 0 where it is not known.
    """
    changes = [(judged, change) for judged in comparison.judged for change in judged.changes]
    rows = [(_row(judged, change), _TONES.get(change.status, "")) for judged, change in changes if change.telling]
    table = []
    if rows:
        cells, tones = zip(*rows, strict=True)
        table = [*fitted([_COMPARED, *cells], width, tones=tones, toned=len(_COMPARED) - 1, paint=paint), ""]
    lines = [line for judged in comparison.judged for line in judged.difference_lines]
    lines += [""] if lines else []
    by_status: defaultdict[str, list[Judged]] = defaultdict(list)
    for judged in comparison.judged:
        by_status[judged.status].append(judged)
    lines += [open_text(judged, earlier) for judged in (*by_status["new"], *by_status["inconclusive"])]
    lines += [missing_text(one) for one in comparison.gone]
    lines += [f"{judged.entry.name}: {change}" for judged, change in changes if change.status == "drifted"]
    count = ", ".join(f"{len(several)} {status}" for status, several in sorted(by_status.items()) if several)
    fails = code == REGRESSION and not comparison.regressed
    verdict = "what has no base, or is missing, fails" if fails else _IN_WORDS[code]
    title = shown(f"{_title(head)}, compared with {base}")
    tone = BAD if code == REGRESSION else GOOD if code == FINE else OPEN
    return [title, "", *table, *map(shown, lines), paint(f"{verdict}: {count or 'nothing measured'}", tone)]


def _title(run: Run) -> str:
    commit = f", commit {run.commit[:12]}{' with changes' if run.dirty else ''}" if run.commit else ""
    return f"run {run.stem} of {_date(run)}{commit}"


def _row(judged: Judged, change: Change) -> tuple[str, ...]:
    return (
        judged.entry.name,
        change.figure,
        *apart(change.base, change.head),
        change.more_text,
        NO_FIGURE if change.criterion is None else change.criterion.tolerance,
        change.base_run.removeprefix("run "),
        change.status,
    )


def key_lines(key: Key, runs: Sequence[tuple[Run, Entry]], last: int, width: int = 0) -> list[str]:
    """The `last` runs of one key (0: all), and every step over all of them. `width` is that of the terminal or 0."""
    steps = steps_of(runs)
    first = max(0, len(runs) - last) if last else 0
    rows = [_saved_row(index, *runs[index], steps) for index in range(first, len(runs))]
    lines = [name_of(key), f"  {place_of(key)}", *(f"  {row}" for row in fitted([_SAVED, *rows], max(0, width - 2)))]
    if first:
        lines.append(f"  and {first} earlier runs (--last 0 shows them)")
    return [*map(shown, (*lines, *_step_lines(runs, steps))), ""]


def _saved_row(index: int, run: Run, entry: Entry, steps: Mapping[str, Sequence[Step]]) -> tuple[str, ...]:
    by_name = figures(entry)
    stepped = [figure for figure, several in steps.items() if any(step.index == index for step in several)]
    notes = [*["accepted"] * entry.accepted, *[f"step in {', '.join(stepped)}"] * bool(stepped)]
    return (
        run.number,
        _date(run),
        run.commit[:8] + ("+" if run.dirty else ""),
        size_text(by_name.get(PEAK)),
        rate_text(by_name.get(GROWTH)),
        entry.outcome_text,
        ", ".join(notes),
    )


def _step_lines(runs: Sequence[tuple[Run, Entry]], steps: Mapping[str, list[Step]]) -> list[str]:
    """From which run on a figure is what it is; channels with the same steps say it once."""
    lines = []
    shown: list[list[Step]] = []
    for figure, several in steps.items():
        if several in shown:
            continue
        shown.append(several)
        for step in several:
            run = runs[step.index][0]
            commit = f" ({run.commit[:12]})" if run.commit else ""
            moved = f"{exact_text(step.before)} -> {exact_text(step.after)}"
            lines.append(f"  {figure}: {moved} since run {run.number}{commit}")
    return lines


def _date(run: Run) -> str:
    return run.time[:16].replace("T", " ")
