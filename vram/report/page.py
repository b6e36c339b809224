"""The page as one HTML file that fetches nothing: text, charts as SVG, style and a script are in it."""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from vram.escaping import visible
from vram.report import figures
from vram.report.charts import spark
from vram.report.dates import Axis, axis
from vram.report.gathered import Page
from vram.report.repository import commit_address
from vram.report.series import RECENT
from vram.summary.difference import signed
from vram.text import apart, size_text

# Nothing is fetched, and nothing runs but our one script, known by its hash.
_MOST_TIMELINES = 30  # of some 20 to 40 kB each
_POLICY = "default-src 'none'; script-src {}; style-src 'unsafe-inline'"


def html(page: Page, folder: Path | None = None) -> str:
    """Return the whole file. All that was measured, and whatever it is called, is text in it.

    `folder` is where the page will be: snapshots are linked from there.
    """
    own = resources.files("vram.report")
    style, script = (own.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    axes = [axis([run.time for run in series.runs], [run.number for run in series.runs]) for series in page.history]
    index_of = {series.key: index for index, series in enumerate(page.history)}
    series_of = {at: index_of[key] for at, key in enumerate(page.bases.keys) if key in index_of}
    return (
        _templates()
        .get_template("page.html")
        .render(
            page=page,
            axes=axes,
            series_of=series_of,
            recording_of={index: at for at, index in series_of.items()},
            commit_link=lambda commit: commit_address(page.repository, commit),
            file_link=lambda name: _file_link(name, folder),
            policy=_POLICY.format(_hash(script)),
            style=style,
            data=script_json(_data(page, axes)),
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
    environment.filters |= {"size": size_text, "short": _short, "list_of": list, "parts": _parts}
    environment.globals |= {
        "apart": apart,
        "spark": spark,
        "recording_charts": figures.recording_charts,
        "mark_charts": figures.mark_charts,
        "history_chart": figures.history_chart,
        "changes_of": figures.changes_of,
        "change_text": figures.change_text,
        "shares": figures.shares,
        "icicles": figures.icicles,
        "lines_of": figures.lines_of,
        "stack": figures.stack,
        "kept_icicles": figures.kept_icicles,
        "differing": figures.differing,
        "signed": signed,
        "RECENT": RECENT,
        "MOST_TIMELINES": _MOST_TIMELINES,
    }
    return environment


def _hash(script: str) -> str:
    """Return the name of a script in a content security policy."""
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def _short(text: str, longest: int = 160) -> str:
    """Cut a text in the middle, as the beginning and the end of a test's id tell most."""
    half = (longest - 3) // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"


def _parts(text: str) -> list[str]:
    """Split a figure where a line may end: never between a number and its unit."""
    return re.split(r"(?<=;) | (?=\()", text)


def _file_link(name: str, folder: Path | None) -> str:
    """Return the relative address of a file, seen from `folder`."""
    try:
        path = Path(os.path.relpath(name, folder)).as_posix() if folder is not None else name
    except ValueError:  # on another drive
        path = name
    return quote(path if path.startswith("/") else f"./{path}", errors="replace")


def script_json(data: object) -> str:
    """Return JSON that may stand in a script element: it can't end it, nor begin a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # beyond ASCII it is escaped already
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(page: Page, axes: list[Axis]) -> list[dict[str, Any]]:
    """Return what page.js says of a point of the history: for each key its runs and their places."""
    return [
        {
            "at": axis.places,
            "runs": [visible(" ".join(filter(None, (run.number, run.date, run.commit_text)))) for run in series.runs],
        }
        for series, axis in zip(page.history, axes, strict=True)
    ]
