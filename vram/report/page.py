"""The page as one HTML file that fetches nothing: plotly.js, data, style and script are in it."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from html import escape
from importlib import resources
from typing import Any

from vram.report.gathered import Page, Series, is_failing, over_bytes, why
from vram.report.terminal import outcome, table_of_tests
from vram.text import apart, rate_text
from vram.units import format_bytes

# Nothing is fetched, and nothing runs but our two scripts, known by their hashes.
_POLICY = "default-src 'none'; script-src {}; style-src 'unsafe-inline'; img-src data: blob:"
_GROWTH = "growth"


def html(page: Page, plotly_js: str) -> str:
    """The whole file. All that was measured, and whatever it is called, is text in it."""
    own = resources.files("vram.report")
    style, script = (own.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = _POLICY.format(" ".join(map(_hash, (plotly_js, script))))
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>GPU memory: {escape(page.verdict)}</title><style>{style}</style></head><body>",
            '<a class="skip" href="#main">Skip to the figures</a>',
            f"<header><h1>GPU memory: {escape(page.verdict)}</h1>",
            '<button type="button" id="theme">Dark</button></header>',
            f'<main id="main">{_body(page)}</main>',
            f"<footer>{_environment(page.environment)}</footer>",
            f'<script type="application/json" id="data">{script_json(_data(page))}</script>',
            f"<script>{plotly_js}</script><script>{script}</script></body></html>",
        ]
    )


def _hash(script: str) -> str:
    """As a content security policy names a script."""
    return f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'"


def script_json(data: object) -> str:
    """JSON that may stand in a script element: it can't end it, nor begin a comment."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # beyond ASCII it is escaped already
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(page: Page) -> dict[str, Any]:
    return {
        "modes": [
            {
                "channels": {name: channel["bytes"] for name, channel in mode["channels"].items()},
                "marks": {name: told["channels"] for name, told in (mode.get("marks") or {}).items()},
                "lines": [(line["line"], line["bytes"]) for line in _lines(mode)],
            }
            for mode in page.modes
        ],
        "history": [
            {"runs": series.runs, "figures": dict(series.figures), "steps": dict(series.steps)}
            for series in page.history
        ],
    }


def _lines(mode: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = (mode.get("at_peak") or {}).get("lines", ())
    return found


def _body(page: Page) -> str:
    parts = []
    if page.modes:
        parts += ["<h2>Recordings</h2>", _overview(page)]
        parts += [_mode(index, mode) for index, mode in enumerate(page.modes)]
    if page.tests:
        parts += ["<h2>Marked tests</h2>", f"<pre>{escape(chr(10).join(table_of_tests(page.tests)))}</pre>"]
        parts += [f'<p class="bad">{escape(test["test"])}: {escape(outcome(test))}</p>' for test in page.failed_tests]
    if page.history:
        parts += ["<h2>Over time</h2>", *(_series(index, series) for index, series in enumerate(page.history))]
    else:
        parts.append('<h2>Over time</h2><p class="faint">No run is saved: pytest --benchmark-autosave keeps them.</p>')
    if page.not_measured or page.skipped:
        parts += ["<h2>Not measured</h2>", _list([*page.not_measured, *(f"not read: {one}" for one in page.skipped)])]
    return "\n".join(parts)


def _overview(page: Page) -> str:
    head = ("recording", "verdict", "growth a sample", "peak", "budget", "seconds")
    rows = [
        (
            _link(f"mode-{index}", mode["mode"]),
            f'<span class="{_class(mode)}">{escape(_verdict(mode))}</span>',
            rate_text(mode["bytes_per_sample"]),
            *map(escape, apart(_own_peak(mode), mode.get("budget_bytes"))),
            "-" if mode.get("seconds") is None else f"{mode['seconds']:.1f}",
        )
        for index, mode in enumerate(page.modes)
    ]
    return _table(head, rows, numbers=(2, 3, 4, 5)) + _list(page.ratios)


def _mode(index: int, mode: Mapping[str, Any]) -> str:
    opened = " open" if index == 0 or is_failing(mode) else ""
    parts = [
        f'<details id="mode-{index}"{opened}><summary>{escape(mode["mode"])}: '
        f'<span class="{_class(mode)}">{escape(_verdict(mode))}</span></summary>',
        f'<p class="reason">{escape(mode["reason"] or "")}</p>',
    ]
    if over_bytes(mode) > 0:
        parts.append(f'<p class="bad">{over_bytes(mode):,} B over its budget</p>')
    if lines := why(mode):
        parts.append(f"<pre>{escape(chr(10).join(lines))}</pre>")
    channels = mode["channels"]
    if channels:
        first = "requested_peak" if "requested_peak" in channels else next(iter(channels))
        parts.append("<h3>By sample, laps overlaid</h3>")
        parts.append(_chart(f"samples-{index}", "samples", {"mode": index}, "channel", channels, first))
        parts.append(_channels(channels))
    for name, told in (mode.get("marks") or {}).items():
        if told["channels"]:
            first = "requested" if "requested" in told["channels"] else next(iter(told["channels"]))
            parts.append(f"<h3>By {escape(name)}, of sample {told['sample']}, which needs most</h3>")
            of = {"mode": index, "mark": name}
            parts.append(_chart(f"marks-{index}-{escape(name)}", "marks", of, "channel", told["channels"], first))
    if _lines(mode):
        parts.append(f"<h3>What the peak of sample {mode['at_peak']['sample']} is made of, by line</h3>")
        parts.append(_chart(f"lines-{index}", "lines", {"mode": index}))
        rows = [
            (
                f"<code>{escape(line['line'])}</code>",
                escape(" ".join(part for part in (line["op"], line["dtype"], line["shape"]) if part)),
                f"{line['count']:,}",
                format_bytes(line["bytes"]),
            )
            for line in _lines(mode)
        ]
        parts.append(_table(("line", "made by", "count", "bytes"), rows, numbers=(2, 3)))
    return "\n".join([*parts, "</details>"])


def _channels(channels: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (
            escape(name),
            escape(channel["verdict"] or "-"),
            rate_text(channel["bytes_per_sample"]),
            format_bytes(channel["before_bytes"]),
            format_bytes(max(map(max, channel["bytes"]))),
            format_bytes(channel["bytes"][-1][-1]),
            "exact" if channel["exact"] else f"to {format_bytes(channel['tolerance_bytes'])}",
        )
        for name, channel in channels.items()
    ]
    head = ("channel", "verdict", "growth a sample", "before", "most", "last", "read")
    return f"<details><summary>Every channel</summary>{_table(head, rows, numbers=(2, 3, 4, 5))}</details>"


def _series(index: int, series: Series) -> str:
    stepped = [name for name in series.steps if name in ("peak", _GROWTH)] or list(series.steps)
    figures = dict.fromkeys([*stepped, *(["peak"] if "peak" in series.figures else []), *series.figures])
    summary = f"{escape(series.name)}, {len(series.runs)} runs"
    if stepped:
        summary += f' <span class="doubt">changed in {escape(", ".join(stepped))}</span>'
    parts = [
        f"<details{' open' if index == 0 else ''}><summary>{summary}</summary>",
        f'<p class="faint">{escape(series.place)}</p>',
        _chart(f"history-{index}", "history", {"series": index}, "figure", figures, next(iter(figures))),
    ]
    parts.append(
        _list(
            f"{name}: {_size(name, before)} -> {_size(name, after)} since run {series.runs[at][0]} {series.runs[at][2]}"
            for name, steps in series.steps.items()
            for at, before, after in steps
        )
    )
    newest = [(escape(name), _size(name, values[-1])) for name, values in series.figures.items()]
    newest_table = _table(("figure", "newest run"), newest, numbers=(1,))
    return "\n".join([*parts, f"<details><summary>As a table</summary>{newest_table}</details></details>"])


def _size(figure: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f} B".replace(".0 B", " B") if figure == _GROWTH else format_bytes(round(value))


def _chart(
    name: str, kind: str, of: Mapping[str, object], chosen: str = "", choices: Iterable[str] = (), first: str = ""
) -> str:
    label = f"{kind} chart; the table below says the same"
    facts = "".join(f' data-{key}="{escape(str(value))}"' for key, value in of.items())
    place = f'<div class="chart" id="{name}" role="img" aria-label="{label}" data-chart="{kind}"{facts}'
    if not chosen:
        return f"{place}></div>"
    options = "".join(
        f"<option{' selected' if choice == first else ''}>{escape(choice)}</option>" for choice in choices
    )
    select = f'<label for="{name}-select">{chosen}</label><select id="{name}-select">{options}</select>'
    return f'{select}{place} data-chosen="{chosen}"></div>'


def _environment(environment: Mapping[str, Any]) -> str:
    told = ", ".join(f"{name} {value}" for name, value in environment.items() if value is not None)
    return f"<p>{escape(told)}</p>" if told else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """`rows` are HTML."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}{' class=number' if column in numbers else ''}>{cell}</{tag}>" for column, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'


def _list(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _link(target: str, text: str) -> str:
    return f'<a href="#{target}">{escape(text)}</a>'


def _verdict(mode: Mapping[str, Any]) -> str:
    return str(mode["verdict"] or ("peaks alone" if mode["laps"] == 1 else "inconclusive"))


def _class(mode: Mapping[str, Any]) -> str:
    if is_failing(mode):
        return "bad"
    return "good" if mode["verdict"] in ("stable", "plateau") else "doubt"


def _own_peak(mode: Mapping[str, Any]) -> int | None:
    return None if mode["peak_bytes"] is None else mode["peak_bytes"] - mode.get("besides_bytes", 0)
