"""The page as Markdown for a pull request: at most 60 lines, whatever was measured and whatever it is called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vram.report.gathered import Page, is_failing, over_bytes, why
from vram.report.terminal import outcome
from vram.text import apart, rate_text
from vram.units import format_bytes

MOST_LINES = 60
_LONGEST = 160
_OF_ONE = 8  # lines that explain one recording
_ROWS, _TESTS, _EXPLAINED, _STEPS, _ABSENT = 14, 5, 10, 4, 4


def markdown(page: Page) -> str:
    """Verdict, a row a recording (those that fail first), explanations, changes over time, what was not measured."""
    lines = [f"**GPU memory: {escaped(page.verdict)}**", ""]
    if page.modes:
        lines += ["| recording | verdict | growth a sample | peak | budget |", "|---|---|---|---|---|"]
        ordered = [*page.failing, *(mode for mode in page.modes if not is_failing(mode))]
        lines += [*map(_row, ordered[:_ROWS]), *_more(len(ordered) - _ROWS, "recordings"), ""]
    if page.failed_tests:
        lines += [f"- {_cut(test['test'])}: {escaped(outcome(test))}" for test in page.failed_tests[:_TESTS]]
        lines += [*_more(len(page.failed_tests) - _TESTS, "tests"), ""]
    told = [line for mode in page.failing for line in _explained(mode)]
    if told:
        lines += ["```text", *(_plain(line) for line in told[:_EXPLAINED])]
        lines += [*([f"and {len(told) - _EXPLAINED} more lines"] if len(told) > _EXPLAINED else []), "```", ""]
    changed = [
        f"- {_cut(series.name)}: {escaped(figure)} {format_bytes(round(before))} -> {format_bytes(round(after))} "
        f"since run {escaped(series.runs[index][0])}"
        for series in page.history
        for figure, steps in series.steps.items()
        for index, before, after in steps[-1:]
        if figure in ("peak", "growth")
    ]
    if changed:
        lines += [*changed[:_STEPS], *_more(len(changed) - _STEPS, "changes"), ""]
    absent = page.not_measured
    lines += [*(f"- {_cut(line)}" for line in absent[:_ABSENT]), *_more(len(absent) - _ABSENT, "reasons")]
    where = ", ".join(f"{name} {value}" for name, value in page.environment.items() if value is not None)
    if where:
        lines += ["", _cut(where, 400)]
    assert len(lines) <= MOST_LINES
    return "\n".join(lines).rstrip() + "\n"


def escaped(text: str) -> str:
    """`text` in one line, as it is: no markup, no mention, no link, no HTML."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_\[\]|~!$#])", r"\\\1", line)
    # A mention, or an address that GitHub would make a link of: broken by a space of no width.
    return line.replace("@", "@\u200b").replace("://", ":\u200b//").replace("www.", "www\u200b.")


def _explained(mode: Mapping[str, Any]) -> list[str]:
    lines = [f"{mode['mode']}: {mode['verdict'] or 'inconclusive'}: {mode['reason']}"]
    if over_bytes(mode) > 0:
        lines.append(f"{mode['mode']}: {over_bytes(mode):,} B over its budget")
    lines += [ratio["text"] for ratio in mode.get("ratios") or () if ratio.get("over")]
    return lines + [f"  {line}" for line in why(mode)[:_OF_ONE]]


def _plain(line: str) -> str:
    """Inside a fence: nothing that would end it."""
    printable = "".join(letter if letter.isprintable() else " " for letter in line)
    return printable.replace("`", "'").replace("@", "@\u200b")[:_LONGEST]


def _row(mode: Mapping[str, Any]) -> str:
    own = None if mode["peak_bytes"] is None else mode["peak_bytes"] - mode.get("besides_bytes", 0)
    peak, budget = apart(own, mode.get("budget_bytes"))
    rate = rate_text(mode["bytes_per_sample"])
    verdict = mode["verdict"] or ("peaks alone" if mode["laps"] == 1 else "inconclusive")
    strong = "**" if is_failing(mode) else ""
    return f"| {_cut(mode['mode'])} | {strong}{escaped(verdict)}{strong} | {rate} | {peak} | {budget} |"


def _cut(text: str, longest: int = _LONGEST) -> str:
    return escaped(text if len(text) <= longest else f"{text[: longest - 3]}...")


def _more(count: int, what: str) -> Sequence[str]:
    return ["", f"and {count} more {what}"] if count > 0 else []
