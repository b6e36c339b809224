"""`vram report`: its arguments, the files it writes, its exit codes."""

from __future__ import annotations

import argparse
from pathlib import Path

from vram.exit_codes import FINE, INCONCLUSIVE
from vram.files import atomic_write
from vram.history import store
from vram.report.gathered import gathered
from vram.summary.reader import read_run

_REPORT, _OUTPUT = Path("reports/memory.json"), Path("reports/memory.html")
SUMMARY = "write what was measured, and how it changed over time, as one HTML page and as Markdown"
REPORT = (
    "Write one HTML file that fetches nothing (needs the extra 'report': plotly): recordings by sample and by token, "
    "peaks by line of code, outcomes and explanations, saved runs over time. The Markdown, of at most 60 lines, is "
    "for a comment on a pull request."
)
EXITS = "exit codes: 0 written, 2 bad usage or a file that can't be read or written, 3 nothing was measured"


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vram report`."""
    add = parser.add_argument
    add("--report", type=Path, metavar="JSON", help=f"what --vram-report wrote (default {_REPORT}, where it is there)")
    add("--storage", default=store.DEFAULT, metavar="URI", help="where runs are saved (default %(default)s)")
    add("--output", type=Path, metavar="HTML", help=f"the page (default {_OUTPUT}; none with --markdown alone)")
    add("--markdown", metavar="FILE", help="the same as Markdown; - prints it")


def report(arguments: argparse.Namespace) -> tuple[int, str]:
    """Return exit code and text of `vram report`. Raises ValueError for what can't be read or written."""
    path = arguments.report or (_REPORT if _REPORT.is_file() else None)
    page = gathered(None if path is None else read_run(path), store.read(arguments.storage))
    if not page.run.recordings and not page.run.tests and not page.history:
        return INCONCLUSIVE, f"nothing to report: no measurement in {path or _REPORT}, no run in {arguments.storage}"
    lines = []
    output = arguments.output or (None if arguments.markdown else _OUTPUT)
    _apart(path, output, None if arguments.markdown in (None, "-") else Path(arguments.markdown))
    if output is not None:
        from vram.report.page import html  # here: Jinja2 is imported where a page is rendered

        _write(output, html(page, _plotly_js()))
        lines.append(f"written: {output}")
    if arguments.markdown:
        from vram.report.markdown import markdown

        text = markdown(page)
        if arguments.markdown == "-":
            lines.append(text.rstrip())
        else:
            _write(Path(arguments.markdown), text)
            lines.append(f"written: {arguments.markdown}")
    return FINE, "\n".join(lines)


def _apart(*paths: Path | None) -> None:
    """Raise ValueError where one of the files would be written over another."""
    resolved = [path.resolve() for path in paths if path is not None]
    if len(set(resolved)) < len(resolved):
        raise ValueError("the report, the page and the Markdown must be different files, got one of them twice")


def _plotly_js() -> str:
    try:
        from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError("the page needs plotly: pip install 'himap-vram[report]' (--markdown - does not)") from None
    return str(get_plotlyjs()).replace("</script", "<\\/script")


def _write(path: Path, text: str) -> None:
    """Write all of `text` or nothing. Raises ValueError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise ValueError(f"{path} can't be written: {error.strerror or error}") from None
