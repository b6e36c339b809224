"""The page as Markdown for a pull request: at most 60 lines, whatever was measured and whatever it is called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vram.report.gathered import Page, is_failing, over_bytes, why
from vram.text import apart, rate_text
from vram.units import format_bytes

MOST_LINES = 60
_LONGEST = 160
_OF_ONE = 8  # lines that explain one recording


class _Safe(str):
    """Text that is printed as it is."""

    __slots__ = ()


def markdown(page: Page) -> str:
    """Verdict, a row a recording (those that fail first), explanations, changes over time, what was not measured."""
    text = (
        _templates()
        .get_template("page.md")
        .render(
            page=page,
            recordings=[*page.failing, *(mode for mode in page.modes if not is_failing(mode))],
            explained=[line for mode in page.failing for line in _explained(mode)],
            changes=[
                (series, figure, before, after, series.runs[index][0])
                for series in page.history
                for figure, steps in series.steps.items()
                for index, before, after in steps[-1:]
                if figure in ("peak", "growth")
            ],
            environment=[f"{name} {value}" for name, value in page.environment.items() if value is not None],
        )
    )
    assert text.count("\n") <= MOST_LINES
    return text.rstrip() + "\n"


@cache
def _templates() -> Environment:
    environment = Environment(  # noqa: S701 - HTML's rules are not Markdown's: `finalize` escapes all that is printed
        loader=PackageLoader("vram.report"),
        finalize=lambda value: value if isinstance(value, _Safe) else escaped(str(value)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "cut": _cut,
        "in_a_fence": _in_a_fence,
        "outcome": lambda test: test["text"],
        "peak_and_budget": _peak_and_budget,
        "rate": rate_text,
        "verdict": lambda mode: mode["outcome"],
    }
    environment.tests["failing"] = is_failing
    return environment


def escaped(text: str) -> str:
    """Return `text` in one line, as it is: no markup, no mention, no link, no HTML."""
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


def _in_a_fence(line: str) -> str:
    """Return `line` without what would end the fence it stands in."""
    printable = "".join(letter if letter.isprintable() else " " for letter in line)
    return _Safe(printable.replace("`", "'").replace("@", "@\u200b")[:_LONGEST])


def _peak_and_budget(mode: Mapping[str, Any]) -> tuple[str, str]:
    own = None if mode["peak_bytes"] is None else mode["peak_bytes"] - mode.get("besides_bytes", 0)
    return apart(own, mode.get("budget_bytes"))


def _cut(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
