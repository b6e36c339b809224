"""`vram gate`: pytest with the given arguments, its run saved, compared with the base, reported; one verdict line."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGINT, Signals

from vram.escaping import shown
from vram.exit_codes import BAD_INPUT, INTERRUPTED
from vram.extras import remedy
from vram.gating import supervise
from vram.gating.outcome import FAILED, PASSED, Ended, outcome
from vram.history import command as history
from vram.history import store
from vram.history.runs import RECORDED, History
from vram.report.command import write_page, write_text
from vram.report.gathered import gathered
from vram.report.repository import repository
from vram.summary import RunSummary
from vram.summary.reader import read_run

SUMMARY = "run pytest, compare what it measured with the recorded base, report, and say yes or no"
GATE = """Run pytest with the arguments that are not listed below, save what it measured, compare it with the recorded
base, write the report, and print one verdict. pytest's options are given as they are:
vram gate tests/memory -k forward --vram-device cuda

Runs are saved in the folder .benchmarks of pytest's rootdir, or in --benchmark-storage. The recorded base is, for
each key, the newest run that was accepted (vram gate --vram-accept), else the first. With --vram-new fail, the
default where CI is set, what has no budget or base, or is missing, is not fine."""
EXITS = (
    "exit codes: 0 fine, 1 regression or out of memory, or a test failed for another reason (the verdict says which), "
    "2 bad input, 3 inconclusive (nothing to compare with, something new or missing, or no decision), 70 a fault of "
    "its own, 130 interrupted, 143 ended by SIGTERM"
)
NO_BASE = "none"
_REPORTS = (Path("reports/memory.json"), Path("reports/memory.html"), Path("reports/memory.md"))
_ACCEPTS = ("--vram-accept", "--vram-accept-force")


@dataclass(frozen=True)
class Request:
    """A gate that somebody called. `pytest` are its arguments; `base` is "none" where nothing is saved and compared.

    `required` are recordings that must have a verdict on growth. `command` is what was called; it begins the verdict.
    """

    pytest: Sequence[str]
    base: str = RECORDED
    criteria: Sequence[str] = ()
    new: str | None = None
    reports: Sequence[Path] = ()
    required: Sequence[str] = ()
    command: str = "vram gate"

    @property
    def compares(self) -> bool:
        """Whether the run is saved and compared."""
        return self.base != NO_BASE

    @property
    def accepts(self) -> bool:
        """Whether the run becomes the base."""
        return any(argument.partition("=")[0] in _ACCEPTS for argument in self.pytest)

    @property
    def report(self) -> Path:
        """The JSON report, which pytest writes."""
        return next((path for path in reversed(self.reports) if path.suffix == ".json"), _REPORTS[0])


def add_gate(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vram gate`; all others are pytest's."""
    add = parser.add_argument
    add("--base", default=RECORDED, metavar="RUN", help="the saved run to compare with (default recorded; none: none)")
    add("--fail", action="append", default=[], metavar="CRITERION", help="as vram compare has it, as in peak:2%%")
    add(
        "--vram-new", choices=("fail", "skip"), help="what is new or missing (default: fail where CI is set, else skip)"
    )
    add(
        "--require",
        action="append",
        default=[],
        metavar="NAME",
        help="a recording that must have a verdict on growth: without one the run is inconclusive; may be repeated",
    )
    add("--command", default="vram gate", help=argparse.SUPPRESS)  # a command that calls this one: see ci/gate
    add(
        "--report",
        "--vram-report",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="what to write: .json, .html or .md; may be repeated (default: reports/memory of each kind)",
    )


def gate(arguments: argparse.Namespace) -> tuple[int, str]:
    """Exit code and verdict of `vram gate`. Raises ValueError for bad input."""
    for path in arguments.report:
        if path.suffix not in (".json", ".html", ".md"):
            raise ValueError(f"--report must end in .json, .html or .md, got {path}")
    request = Request(
        pytest=arguments.pytest,
        base=arguments.base,
        criteria=arguments.fail,
        new=arguments.vram_new,
        reports=arguments.report or _REPORTS,
        required=arguments.require,
        command=arguments.command,
    )
    return run(request)


def run(request: Request) -> tuple[int, str]:
    """Exit code and verdict: one line, which begins with the command. Raises ValueError for bad input."""
    _check_installed(request)
    _remove({*request.reports, request.report})
    status, signals = supervise.run([sys.executable, "-m", "pytest", *_options(request), *request.pytest])
    if signals and signals[0] != SIGINT:
        # Whoever supervises says so itself.
        text = f"{request.command}: ended by {Signals(signals[0]).name}"
        return 128 + signals[0], "" if os.environ.get(supervise.MARK) else text
    if status in (PASSED, FAILED) and not request.report.is_file():
        raise ValueError(f"nothing was judged: pytest wrote no report ({request.report}), see above")
    measured = read_run(request.report) if request.report.is_file() else RunSummary()
    ended = Ended(
        INTERRUPTED if signals else status,
        replace(measured, interrupted=measured.interrupted or bool(signals)),
        new_fails=measured.missing_fails,
        accepted=bool(measured.saved.get("accepted", request.accepts)),
        base=request.base if request.compares else "",
        required=request.required,
        command=request.command,
    )
    if measured.saved and (measured.recordings or measured.tests) and not ended.run.interrupted:
        ended = _compared(request, ended)
    code, line = outcome(ended)
    verdict = shown(f"{request.command}: {line}")
    if not ended.run.interrupted:
        _report(request, ended.run, verdict)
    return code, verdict


def _remove(paths: Iterable[Path]) -> None:
    """Reports of an earlier run would be taken for this one's."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise ValueError(f"{path} can't be written: {error.strerror or error}") from None


def _check_installed(request: Request) -> None:
    needed = ("pytest", "pytest_benchmark") if request.compares else ("pytest",)
    missing = [name.replace("_", "-") for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"a gate needs {' and '.join(missing)}: {remedy('history')}")


def _options(request: Request) -> list[str]:
    """pytest's, before those of the user."""
    options = ["--vram-gate", "--vram-report", str(request.report)]
    if request.new is not None:
        options += ["--vram-new", request.new]
    if request.compares:
        # As --benchmark-autosave names it, and the process: two gates that end in the same second are two runs.
        name = f"{_commit()}_{datetime.now(UTC):%Y%m%d_%H%M%S}_{os.getpid()}"
        options += ["--benchmark-quiet", "--benchmark-save", name, f"--vram-compare={request.base}"]
        options += [f"--vram-compare-fail={criterion}" for criterion in request.criteria]
    return options


def _commit() -> str:
    try:
        git = ["git", "rev-parse", "--verify", "--quiet", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return "unversioned"


def _compared(request: Request, ended: Ended) -> Ended:
    """Compare with the base, and print that as `vram compare` does."""
    saved = ended.run.saved
    arguments = argparse.Namespace(
        base=saved["base"], head=saved["run"], fail=saved["criteria"], storage=saved["storage"], json=False
    )
    try:
        code, text, absent = history.compared(arguments)
    except ValueError as error:
        print(shown(f"{request.command}: {error}"), file=sys.stderr)
        return replace(ended, compared=BAD_INPUT)
    print(f"\n{text}\n", flush=True)
    return replace(ended, compared=code, absent=bool(absent))


def _report(request: Request, measured: RunSummary, verdict: str) -> None:
    """Write the page and the comment. What can't be written changes no verdict, and is said."""
    storage = measured.saved.get("storage")
    for path in request.reports:
        write = {".html": _write_page, ".md": _write_comment}.get(path.suffix)
        if write is not None:
            try:
                write(path, measured, verdict, lambda: store.read(storage) if storage else History(()))
            except Exception as error:
                print(shown(f"{request.command}: {path} not written: {error}"), file=sys.stderr)


def _write_page(path: Path, measured: RunSummary, verdict: str, read: Callable[[], History]) -> None:
    page = gathered(measured, read(), repository())
    if page.run.recordings or page.run.tests or page.run.missing or page.history:
        write_page(path, page)


def _write_comment(path: Path, measured: RunSummary, verdict: str, read: Callable[[], History]) -> None:
    from vram.report.markdown import escaped, markdown

    write_text(path, f"{escaped(verdict)}\n\n{markdown(gathered(measured, read()))}")
