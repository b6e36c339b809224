"""`vram report`: its arguments, the files it writes, its exit codes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vram.escaping import shown
from vram.exit_codes import BAD_INPUT, FINE, INCONCLUSIVE
from vram.files import atomic_write
from vram.history import store
from vram.history.runs import History
from vram.report.gathered import Page, gathered
from vram.report.repository import repository, web_address
from vram.summary.reader import read_run

Result = TypeVar("Result")
_REPORT, _OUTPUT = Path("reports/memory.json"), Path("reports/memory.html")
SUMMARY = "write what was measured, and how it changed over time, as one HTML page and as Markdown"
REPORT = (
    "Write one HTML file that fetches nothing: what failed and why, readings over all runs with their limits and base, "
    "peaks by line of code, explanations, saved runs over time. The Markdown, of at most 60 lines, is for a comment on "
    "a pull request."
)
EXITS = "exit codes: 0 written, 2 bad usage or a file that can't be read or written, 3 nothing was measured"


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vram report`."""
    add = parser.add_argument
    add("--report", type=Path, metavar="JSON", help=f"what --vram-report wrote (default {_REPORT}, where it is there)")
    add("--storage", default=store.DEFAULT, metavar="URI", help="where runs are saved (default %(default)s)")
    add("--output", type=Path, metavar="HTML", help=f"the page (default {_OUTPUT}; none with --markdown alone)")
    add(
        "--repository",
        metavar="URL",
        help="web address of the repository, for links to commits (default: that of the CI job, or of git's origin)",
    )
    add("--markdown", metavar="FILE", help="the same as Markdown; - prints it")


def report(arguments: argparse.Namespace) -> tuple[int, str]:
    """Return exit code and text of `vram report`.

    A source that can't be read, and a file that can't be made, is a line on stderr and exit code 2; whatever else there
    is, is read and written all the same. Raises ValueError for bad usage.
    """
    path = arguments.report or (_REPORT if _REPORT.is_file() else None)
    output = arguments.output or (None if arguments.markdown else _OUTPUT)
    _apart(path, output, None if arguments.markdown in (None, "-") else Path(arguments.markdown))
    commits_at = repository() if arguments.repository is None else web_address(arguments.repository)
    steps = _Steps()
    run = steps.take(lambda: None if path is None else read_run(path))
    history = steps.take(lambda: store.read(arguments.storage)) or History(())
    page = gathered(run, History(history.runs, [*history.skipped, *steps.problems]), commits_at)
    if not (page.run.recordings or page.run.tests or page.run.missing or page.history):
        text = f"nothing to report: no measurement in {path or _REPORT}, no run in {arguments.storage}"
        return steps.end(INCONCLUSIVE), "" if steps.problems else text
    lines = [
        steps.take(lambda: write_page(output, page)) if output is not None else None,
        steps.take(lambda: _write_markdown(arguments.markdown, page)) if arguments.markdown else None,
    ]
    return steps.end(FINE), "\n".join(filter(None, lines))


class _Steps:
    """Takes steps that may fail each for itself: what was bad input goes to stderr, a fault of ours ends the command
    once all steps were taken."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._fault: Exception | None = None

    def take(self, step: Callable[[], Result]) -> Result | None:
        """The result of `step`; None where it failed."""
        try:
            return step()
        except ValueError as error:
            self.problems.append(str(error))
        except Exception as error:
            self._fault = self._fault or error
        return None

    def end(self, code: int) -> int:
        """The exit code: `code` where every step succeeded. Raises what was a fault of ours."""
        for problem in self.problems:
            print(shown(f"vram report: {problem}"), file=sys.stderr)
        if self._fault is not None:
            raise self._fault
        return BAD_INPUT if self.problems else code


def write_page(output: Path, page: Page) -> str:
    """Write the page, and say so. Raises ValueError where it can't be made or written."""
    from vram.report.page import html  # here: Jinja2 is imported where a page is rendered

    write_text(output, html(page, output.parent))
    return f"written: {output}"


def _write_markdown(name: str, page: Page) -> str:
    from vram.report.markdown import markdown

    text = markdown(page)
    if name == "-":
        return text.rstrip()
    write_text(Path(name), text)
    return f"written: {name}"


def _apart(*paths: Path | None) -> None:
    """Raise ValueError where one of the files would be written over another."""
    resolved = [path.resolve() for path in paths if path is not None]
    if len(set(resolved)) < len(resolved):
        raise ValueError("the report, the page and the Markdown must be different files, got one of them twice")


def write_text(path: Path, text: str) -> None:
    """Write all of `text` or nothing. Raises ValueError where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise ValueError(f"{path} can't be written: {error.strerror or error}") from None
