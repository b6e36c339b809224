"""`vram init`: the smallest useful set of files for a project. Nothing that exists is overwritten or rewritten."""

from __future__ import annotations

import argparse
import configparser
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from vram.exit_codes import FINE
from vram.files import atomic_write, is_file, is_folder

SUMMARY = "write a first test, its budget, pytest's options and a workflow into a project"
INIT = """Write a first memory test, its budget, pytest's options (at the end of pyproject.toml, where nothing
configures pytest yet) and a workflow for GitHub into a project. Nothing that exists is overwritten or rewritten: a
second run writes nothing."""
EXITS = "exit codes: 0 written, or there already; 2 a folder that does not exist or can't be written to"
OPTIONS = {"vram_device": "auto", "vram_report": "reports/memory.json"}
_TABLE = "[tool.pytest.ini_options]"
_REMARKS = {
    "vram_device": 'or "cuda", "cpu", and "simulated" with vram_card = "24GiB": a card without a GPU',
    "vram_report": "`vram report` makes a page of it",
}
# Files that pytest reads its options from, the first that has any; pyproject.toml comes before the last two.
_ALWAYS = ("pytest.toml", ".pytest.toml", "pytest.ini", ".pytest.ini")
_WITH_SECTION = {"tox.ini": "pytest", "setup.cfg": "tool:pytest"}


@dataclass
class _Done:
    """A line for each file that was written or left alone, and for what is left to do by hand."""

    written: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    by_hand: list[str] = field(default_factory=list)

    def text(self, test: str) -> str:
        """All of it, and the next command."""
        lines = [f"written: {line}" for line in self.written] or ["nothing to write: it is all there, or left to you"]
        lines += [f"left alone: {line}" for line in self.kept]
        lines += [f"by hand, if you like: {line}" for line in self.by_hand]
        return "\n".join([*lines, f"next: vram gate {test} --vram-accept"])


def add_init(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vram init`."""
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="the project's (default: this one)")


def init(arguments: argparse.Namespace) -> tuple[int, str]:
    """Exit code and text of `vram init`. Raises ValueError for a folder that can't be written to."""
    root: Path = arguments.folder
    if not is_folder(str(root)):
        raise ValueError(f"the project's folder must exist, got {root}")
    done, project = _Done(), _parsed(root / "pyproject.toml")
    test = f"{_tests(root)}/test_memory.py"
    try:
        _write(root, test, _template("test_memory.py.txt"), done)
        _write(root, "budgets.toml", _template("budgets.toml"), done)
        _configure(root, project, done)
        workflow = _template("memory.yml").replace("REF", _ref()).replace("TESTS", test)
        _write(root, ".github/workflows/memory.yml", workflow.replace("INSTALL", _install(root, project)), done)
        if (root / ".git").exists() and not _ignores(root / ".gitignore"):
            done.by_hand.append("add .benchmarks/, reports/ and vram-snapshots/ to .gitignore")
    except OSError as error:
        raise ValueError(f"{error.filename or root} can't be written: {error.strerror or error}") from None
    return FINE, done.text(test)


def _template(name: str) -> str:
    return resources.files("vram.gating").joinpath("templates", name).read_text(encoding="utf-8")


def _write(root: Path, name: str, text: str, done: _Done) -> None:
    path = root / name
    if path.is_symlink() or path.exists():
        done.kept.append(f"{name} is there")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text.encode())
    done.written.append(name)


def _tests(root: Path) -> str:
    """The folder of tests that is there; "tests" where there is none."""
    return next((name for name in ("tests", "test") if is_folder(str(root / name))), "tests")


def _ref() -> str:
    """The tag of the action that is of this version; the newest where this is a source tree that nobody installed."""
    try:
        return f"v{metadata.version('himap-vram')}"
    except metadata.PackageNotFoundError:
        return "main"


def _ignores(path: Path) -> bool:
    """Whether git ignores saved runs."""
    return is_file(str(path)) and ".benchmarks" in path.read_text(encoding="utf-8", errors="replace")


def _install(root: Path, project: Mapping[str, Any] | None) -> str:
    """pip's arguments that install the project."""
    if "project" in (project or {}) or is_file(str(root / "setup.py")):
        return "-e ."
    return "-r requirements.txt" if is_file(str(root / "requirements.txt")) else "pytest"


def _parsed(path: Path) -> Mapping[str, Any] | None:
    """The contents of pyproject.toml; None where it can't be read, {} where there is none."""
    try:
        return tomllib.loads(path.read_bytes().decode()) if path.exists() else {}
    except (OSError, ValueError, RecursionError):
        return None


def _configure(root: Path, project: Mapping[str, Any] | None, done: _Done) -> None:
    """Add pytest's options to pyproject.toml, where nothing configures pytest, else say what to add."""
    name = "pyproject.toml"
    if project is None:
        done.kept.append(f"{name} can't be read as TOML")
        return
    configured = _configured_in(root, project)
    if configured is not None:
        name, options = configured
        done.kept.append(f"{name} configures pytest")
        _by_hand(name, [key for key in OPTIONS if key not in options], done)
        return
    path = root / name
    before = path.read_bytes() if path.exists() else b""
    after = before + _table(before)
    if _is_extended(after, project):
        atomic_write(path.resolve(), after)  # a link stays one
        done.written.append(f"{name}, at its end: {_TABLE}" if before else name)
    else:
        done.kept.append(f"{name} has its tables in a form that nothing can be added to")
        _by_hand(name, list(OPTIONS), done)


def _by_hand(name: str, keys: Sequence[str], done: _Done) -> None:
    quote = '"' if name.endswith(".toml") else ""
    done.by_hand += [f"add {key} = {quote}{OPTIONS[key]}{quote} to pytest's options in {name}" for key in keys]


def _table(before: bytes) -> bytes:
    """The table as it follows `before`, with its line ends."""
    lines = [_TABLE, *(f'{key} = "{value}" # {_REMARKS[key]}' for key, value in OPTIONS.items()), ""]
    if before:
        lines[:0] = [""] if before.endswith(b"\n") else ["", ""]
    return ("\r\n" if b"\r\n" in before else "\n").join(lines).encode()


def _is_extended(text: bytes, project: Mapping[str, Any]) -> bool:
    """Whether `text` is TOML, and says what `project` does and pytest's options, nothing else."""
    try:
        after = tomllib.loads(text.decode())
    except ValueError:
        return False
    return after == {**project, "tool": {**project.get("tool", {}), "pytest": {"ini_options": OPTIONS}}}


def _configured_in(root: Path, project: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """The file that configures pytest, and the options it has; None where there is none."""
    for name in _ALWAYS:
        if is_file(str(root / name)):
            toml = name.endswith(".toml")
            return name, (_parsed(root / name) or {}).get("pytest", {}) if toml else _section(
                root / name, "pytest"
            ) or {}
    tool = project.get("tool", {})
    own = tool.get("pytest") if isinstance(tool, dict) else None
    if own is not None:
        options = {**own, **own.get("ini_options", {})} if isinstance(own, dict) else {}
        return "pyproject.toml", options
    for name, section in _WITH_SECTION.items():
        in_section = _section(root / name, section)
        if in_section is not None:
            return name, in_section
    return None


def _section(path: Path, section: str) -> Mapping[str, str] | None:
    """The options of a section of an ini file; None where there is none."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, configparser.Error):
        return None
    return dict(parser[section]) if parser.has_section(section) else None
