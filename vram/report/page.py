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

from vram.escaping import visible
from vram.report.gathered import Page
from vram.text import size_text

# Nothing is fetched, and nothing runs but our two scripts, known by their hashes.
_POLICY = "default-src 'none'; script-src {}; style-src 'unsafe-inline'; img-src data: blob:"


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
        finalize=lambda value: visible(value) if type(value) is str else value,  # not what is marked safe
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["size"] = size_text
    return environment


def _hash(script: str) -> str:
    """Return the name of a script in a content security policy."""
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def script_json(data: object) -> str:
    """Return JSON that may stand in a script element: it can't end it, nor begin a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # beyond ASCII it is escaped already
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shown_keys(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {visible(name): value for name, value in figures.items()}


def _data(page: Page) -> dict[str, Any]:
    """Return the figures that page.js draws, by names as the templates show them: it looks figures up by those."""
    return {
        "recordings": [
            {
                "channels": {visible(name): channel.bytes for name, channel in one.channels.items()},
                "marks": {visible(name): _shown_keys(mark["channels"]) for name, mark in one.marks.items()},
                "lines": [(line["line"], line["bytes"]) for line in (one.at_peak or {}).get("lines", ())],
            }
            for one in page.run.recordings
        ],
        "history": [
            {"runs": series.runs, "figures": _shown_keys(series.figures), "steps": _shown_keys(series.steps)}
            for series in page.history
        ],
    }
