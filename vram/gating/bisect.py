"""`vram bisect`: the commit that made memory worse, found by running tests on commits between a good and a bad one."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

from vram.escaping import shown
from vram.exit_codes import FINE, INCONCLUSIVE
from vram.extras import remedy
from vram.gating import imported
from vram.history import command as history
from vram.history import store
from vram.history.compare import MEMORY, Comparison
from vram.history.criteria import parse
from vram.history.keys import name_of
from vram.history.runs import NoRun, Run, with_run

SUMMARY = "find the commit that made memory worse, by running tests on commits between a good and a bad one"
BISECT = """Run tests on commits between GOOD and BAD, as git bisect chooses them, and name the first that is worse:

vram bisect v1.2 HEAD -- tests/memory --vram-device simulated

A commit is worse where a figure that regressed from GOOD to BAD is over what --fail allows (without it: one byte
more of an exact figure). Commits whose tests can't run, or don't measure that figure, are skipped.

Commits are checked out in a temporary folder, as a worktree of git, and their runs are saved beside it: the checkout,
.benchmarks and the Python environment stay as they are. The tests import the commit's own code, from the root of the
repository and its folder src, or from --path. Files that git does not track are not there, nor are submodules."""
EXITS = (
    "exit codes: 0 the commit is found, 2 bad input (GOOD or BAD can't be measured), 3 not found (BAD is not worse "
    "than GOOD, or what is left can't be measured), 70 a fault of its own, 130 interrupted, 143 ended by SIGTERM"
)
Verdict = Literal["good", "bad", "skip"]
_RAN = (0, 1)  # exit codes of pytest after which there may be figures
_LEFT, _FOUND = "only 'skip'ped commits left to test", " is the first bad commit"


def add_bisect(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vram bisect`; all others, and all after --, are pytest's."""
    add = parser.add_argument
    add("good", metavar="GOOD", help="a commit before memory got worse")
    add("bad", metavar="BAD", help="a commit after it did")
    add("--fail", action="append", default=[], metavar="CRITERION", help="as vram compare has it, as in peak:2%%")
    add(
        "--path",
        action="append",
        default=[],
        metavar="FOLDER",
        help="where the project's code is imported from, as seen from the root of the repository; may be repeated",
    )


def bisect(arguments: argparse.Namespace) -> tuple[int, str]:
    """Exit code and text of `vram bisect`. Raises ValueError for bad input."""
    if not store.installed():
        raise ValueError(f"a bisection needs pytest-benchmark: {remedy('history')}")
    for text in arguments.fail:
        parse(text)
    here = Path.cwd()
    top = Path(_git(here, "rev-parse", "--show-toplevel").strip())
    good, bad = (
        _git(top, "rev-parse", "--verify", f"{name}^{{commit}}").strip() for name in (arguments.good, arguments.bad)
    )
    pytest = arguments.pytest[arguments.pytest[:1] == ["--"] :]
    try:
        with (
            _ended_by_sigterm(),
            tempfile.TemporaryDirectory(prefix="vram-bisect-") as folder,
            _worktree(top, Path(folder).resolve() / top.name, bad) as checkout,
        ):
            tests = _Tests(top, checkout, here.resolve().relative_to(top.resolve()), pytest, arguments.path)
            return _Search(tests, arguments.fail).between(good, bad)
    except _Terminated:
        return 128 + signal.SIGTERM, ""


def _git(folder: Path, *arguments: str, allowed: Sequence[int] = (0,)) -> str:
    """Standard output of git. Raises ValueError with its last line where it ends otherwise than `allowed`."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        ended = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}, errors="replace"
        )
    except OSError as error:
        raise ValueError(f"a bisection needs git: {error}") from None
    if ended.returncode not in allowed:
        lines = (ended.stderr or ended.stdout).strip().splitlines() or [f"ended with {ended.returncode}"]
        raise ValueError(f"git {' '.join(arguments)}: {lines[-1]}")
    return ended.stdout


class _Terminated(BaseException):
    """SIGTERM came: what was made is removed before the process ends."""


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _worktree(top: Path, folder: Path, commit: str) -> Iterator[Path]:
    """A checkout of its own, with a bisection of its own: one that goes on in the repository is not touched."""
    _git(top, "worktree", "add", "--quiet", "--detach", str(folder), commit)
    try:
        yield folder
    finally:
        _git(top, "worktree", "remove", "--force", str(folder))


class _Tests:
    """The user's tests, run on one commit after another in `checkout`; the runs are kept beside it.

    `within` is the folder that the user is in, as seen from `top`, the root of the repository.
    """

    def __init__(self, top: Path, checkout: Path, within: Path, pytest: Sequence[str], paths: Sequence[str]) -> None:
        self.checkout, self.storage = checkout, f"file://{checkout.parent / 'runs'}"
        self._top, self._within, self._pytest = top, within, pytest
        self._paths = paths or ("src", ".")
        self._plugin = checkout.parent / "plugin"
        self._plugin.mkdir()
        (self._plugin / "vram_imported.py").write_bytes(Path(imported.__file__).read_bytes())

    def measured(self, commit: str) -> Run | str:
        """Run of the commit's tests, or the reason why there is none."""
        _git(self.checkout, "checkout", "--quiet", "--detach", "--force", commit)
        _git(self.checkout, "clean", "--quiet", "-ffdx")
        folder, elsewhere = self.checkout / self._within, self._plugin / f"{commit}.txt"
        if not folder.is_dir():
            return f"it has no folder {self._within}"
        options = ("-p", "vram_imported", "--benchmark-storage", self.storage, "--benchmark-save", _name(commit))
        command = [sys.executable, "-m", "pytest", *options, *self._pytest]
        ended = subprocess.run(  # noqa: S603
            command,
            cwd=folder,
            env=self._environment(elsewhere),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if others := sorted({line for line in _lines(elsewhere) if line}):
            name, _, path = others[0].partition("\t")
            return (
                f"its tests import {name} from {path}, which is not the commit's: name the folder of its own in --path"
            )
        last = ([line.strip("= ") for line in ended.stdout.splitlines() if line.strip("= ")] or [""])[-1]
        if ended.returncode not in _RAN:
            return f"pytest ended with {ended.returncode}: {last}"
        try:
            return store.read(self.storage).find(_name(commit))
        except NoRun:
            return f"nothing was measured: {last}"

    def _environment(self, elsewhere: Path) -> dict[str, str]:
        folders = [str(self._plugin), *(str(self.checkout / path) for path in self._paths)]
        path = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
        checked = {"VRAM_COMMIT": self.checkout, "VRAM_CHECKOUT": self._top, "VRAM_IMPORTED": elsewhere}
        return {**os.environ, "PYTHONPATH": path, **{name: str(value) for name, value in checked.items()}}


def _name(commit: str) -> str:
    """The name that its run is saved under."""
    return commit[:12]


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


@dataclass(frozen=True)
class Worse:
    """A figure that is worse: of which recording or test, and which ("memory": it ran out)."""

    name: str
    figure: str

    def __str__(self) -> str:
        return f"{self.name} ran out of memory" if self.figure == MEMORY else f"{self.figure} of {self.name}"

    def verdict(self, comparison: Comparison) -> Verdict:
        """How a commit stands in it; `comparison` is the commit's run beside the good one."""
        own = [one for one in comparison.judged if name_of(one.entry.key) == self.name and one.base is not None]
        if any(change.figure in (self.figure, MEMORY) for one in own for change in one.regressions):
            return "bad"
        figures = {change.figure for one in own for change in one.changes if change.status != "not measured"}
        return "good" if self.figure in figures or (self.figure == MEMORY and figures) else "skip"


def worse(comparison: Comparison) -> list[Worse]:
    """All that regressed."""
    return [Worse(name_of(one.entry.key), change.figure) for one in comparison.judged for change in one.regressions]


class _Search:
    """A bisection between two commits: the runs of the commits that were measured, and what is sought in them."""

    def __init__(self, tests: _Tests, fail: Sequence[str]) -> None:
        self._tests, self._fail = tests, fail
        self._measured: list[str] = []

    def between(self, good: str, bad: str) -> tuple[int, str]:
        """Exit code and text. Raises ValueError where one of the two can't be measured."""
        base, head = self._needed("GOOD", good), self._needed("BAD", bad)
        sought = worse(self._beside(base, head))
        if not sought:
            return INCONCLUSIVE, f"BAD is not worse than GOOD:\n\n{self._compared(good, bad)}"
        print(shown(f"worse in BAD than in GOOD: {'; '.join(map(str, sought))}"), flush=True)
        text = self._git("bisect", "start", "--no-checkout", bad, good)
        while _FOUND not in text and _LEFT not in text:
            commit = self._git("rev-parse", "BISECT_HEAD").strip()
            verdict, remark = self._verdict(base, self._run(commit), sought)
            print(shown(f"{self._title(commit)}: {remark or verdict}"), flush=True)
            text = self._git("bisect", verdict, allowed=(0, 2))
        found, _, _ = text.partition(_FOUND)
        if found == text:
            left = [line for line in text.splitlines() if len(line) >= 40 and line.isalnum()]
            titles = "\n".join(f"  {self._title(commit)}" for commit in left)
            return INCONCLUSIVE, f"it is one of these, of which all but the last could not be measured:\n{titles}"
        return FINE, self._found(found.split()[-1], good)

    def _needed(self, name: str, commit: str) -> Run:
        run = self._run(commit)
        if isinstance(run, str):
            raise ValueError(f"{name} must be measured, and {self._title(commit)} was not: {run}")
        return run

    def _run(self, commit: str) -> Run | str:
        run = self._tests.measured(commit)
        if isinstance(run, Run):
            self._measured.append(commit)
        return run

    def _verdict(self, base: Run, run: Run | str, sought: Sequence[Worse]) -> tuple[Verdict, str]:
        """The word for git, and what else to print."""
        if isinstance(run, str):
            return "skip", f"skipped, {run}"
        comparison = self._beside(base, run)
        verdicts = {one: one.verdict(comparison) for one in sought}
        for verdict in ("bad", "skip", "good"):
            if verdict in verdicts.values():
                open_ = "; ".join(str(one) for one, its in verdicts.items() if its == "skip")
                return verdict, f"skipped, not measured or not decided: {open_}" if verdict == "skip" else ""
        raise AssertionError("nothing is sought")

    def _beside(self, base: Run, head: Run) -> Comparison:
        return with_run(base, head, [parse(text) for text in self._fail])

    def _found(self, commit: str, good: str) -> str:
        """The commit, and its run beside that of the nearest commit before it that was measured."""
        before = self._git("rev-list", f"{commit}^", f"^{good}^@").split()
        base = next((one for one in before if one in self._measured), good)
        beside = "" if base == before[0] else f", beside {self._title(base)}; what is between was not measured"
        who = self._git("show", "--no-patch", "--format=%an, %as", commit).strip()
        return f"first bad commit: {self._title(commit)} ({who}){beside}\n\n{self._compared(base, commit)}"

    def _compared(self, base: str, head: str) -> str:
        """The output of `vram compare`."""
        storage = self._tests.storage
        return history.compare(
            argparse.Namespace(base=_name(base), head=_name(head), fail=self._fail, storage=storage, json=False)
        )[1]

    def _title(self, commit: str) -> str:
        """ "3f2c1a9 Keep every output"."""
        return self._git("show", "--no-patch", "--format=%h %s", commit).strip()

    def _git(self, *arguments: str, allowed: Sequence[int] = (0,)) -> str:
        return _git(self._tests.checkout, *arguments, allowed=allowed)
