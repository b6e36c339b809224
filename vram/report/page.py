"""The page as one HTML file that fetches nothing: plotly.js, data, style and script are in it."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from vram.report.gathered import Page, Series, is_failing, over_bytes, why
from vram.report.terminal import table_of_tests
from vram.text import apart, rate_text
from vram.units import format_bytes

# Nothing is fetched, and nothing runs but our two scripts, known by their hashes.
_POLICY = "default-src 'none'; script-src {}; style-src 'unsafe-inline'; img-src data: blob:"
_GROWTH = "growth"


def html(page: Page, plotly_js: str) -> str:
    """Return the whole file. All that was measured, and whatever it is called, is text in it."""
    own = resources.files("vram.report")
    style, script = (own.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        _templates()
        .get_template("page.html")
        .render(
            page=page,
            policy=_POLICY.format(" ".join(map(_hash, (plotly_js, script)))),
            style=style,
            data=script_json(_data(page)),
            plotly_js=plotly_js,
            script=script,
        )
    )


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("vram.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": format_bytes,
        "changes": _changes,
        "choices": _choices,
        "class": _class,
        "figure": _figure,
        "outcome": lambda test: test["text"],
        "over_bytes": over_bytes,
        "peak_and_budget": lambda mode: apart(_own_peak(mode), mode.get("budget_bytes")),
        "rate": rate_text,
        "seconds": lambda seconds: "-" if seconds is None else f"{seconds:.1f}",
        "stepped": _stepped,
        "table_of_tests": table_of_tests,
        "verdict": lambda mode: mode["outcome"],
        "why": why,
    }
    environment.tests["failing"] = is_failing
    return environment


def _hash(script: str) -> str:
    """Return the name of a script in a content security policy."""
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def script_json(data: object) -> str:
    """Return JSON that may stand in a script element: it can't end it, nor begin a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # beyond ASCII it is escaped already
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(page: Page) -> dict[str, Any]:
    """Return the figures that page.js draws."""
    return {
        "modes": [
            {
                "channels": {name: channel["bytes"] for name, channel in mode["channels"].items()},
                "marks": {name: mark["channels"] for name, mark in (mode.get("marks") or {}).items()},
                "lines": [(line["line"], line["bytes"]) for line in (mode.get("at_peak") or {}).get("lines", ())],
            }
            for mode in page.modes
        ],
        "history": [
            {"runs": series.runs, "figures": dict(series.figures), "steps": dict(series.steps)}
            for series in page.history
        ],
    }


def _stepped(series: Series) -> list[str]:
    """Return the figures to name as changed: peak and growth where they did, else whatever did."""
    return [name for name in series.steps if name in ("peak", _GROWTH)] or list(series.steps)


def _choices(series: Series) -> list[str]:
    """Return the figures a reader may choose: those that changed, the peak, the others."""
    return list(dict.fromkeys([*_stepped(series), *(["peak"] if "peak" in series.figures else []), *series.figures]))


def _changes(series: Series) -> list[str]:
    return [
        f"{name}: {_figure(before, name)} -> {_figure(after, name)} since run {series.runs[at][0]} {series.runs[at][2]}"
        for name, steps in series.steps.items()
        for at, before, after in steps
    ]


def _figure(value: float | None, name: str) -> str:
    if value is None or name == _GROWTH:
        return rate_text(value)
    return format_bytes(round(value))


def _class(mode: Mapping[str, Any]) -> str:
    if is_failing(mode):
        return "bad"
    return "good" if mode["verdict"] in ("stable", "plateau") else "doubt"


def _own_peak(mode: Mapping[str, Any]) -> int | None:
    return None if mode["peak_bytes"] is None else mode["peak_bytes"] - mode.get("besides_bytes", 0)
