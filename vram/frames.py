"""Lines of call stacks: the one that a user can act on, among those of torch, vram and the standard library."""

from __future__ import annotations

import functools
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_MOST_PLACES = 2 * 64  # of frames, two numbers each
_OURS = Path(__file__).parent
# Ours too, but called by what is traced: operations that are taken apart, of a thread, or on a simulated card.
_WITHIN = (str(_OURS / "simulated"), str(_OURS / "torch_hooks"))


def _source(module: str) -> Path:
    """The file of a module that is installed; located and not imported, as importing vram imports no torch."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"vram needs {module}, which is not installed")
    return Path(spec.origin)


# Frames in here are no line that matters to a user. Deprecated names of torch are wrapped in typing_extensions.
_BELOW = (str(_source("torch").parent), str(_OURS), str(_source("typing_extensions")), "<")
_WRAPPERS = (str(Path("torch", "_dynamo", "eval_frame.py")), str(Path("torch", "_compile.py")))
_STDLIB = sysconfig.get_path("stdlib")
_INSTALLED = ("site-packages", "dist-packages")


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of a call stack."""

    filename: str
    line: int
    name: str

    @property
    def installed(self) -> bool:
        """Whether it is a library's and not the project's own."""
        return _is_installed(self.filename)

    @property
    def internal(self) -> bool:
        """Whether it is torch's, vram's, or of code without a file."""
        return _is_internal(self.filename)

    def __str__(self) -> str:
        path = _in_library(self.filename)
        return f"{_in_folder(path, Path.cwd()) if path.is_absolute() else path}:{self.line} {self.name}"


# Paths repeat: a trace has some hundred lines in some ten files.
@functools.cache
def _is_installed(filename: str) -> bool:
    return any(folder in filename for folder in _INSTALLED) or filename.startswith(_STDLIB)


@functools.cache
def _is_internal(filename: str) -> bool:
    return filename.startswith(_BELOW)


@functools.cache
def _in_library(filename: str) -> Path:
    """The path of an installed file in the folder that it is installed in; of any other as it is."""
    path = Path(filename)
    for folder in _INSTALLED:
        if folder in path.parts:
            path = Path(*path.parts[path.parts.index(folder) + 1 :])
    return path


@functools.lru_cache(maxsize=4096)
def _in_folder(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def short_name(qualname: str) -> str:
    """A function's name without the functions it is defined in: "test.<locals>.Trainer.step" -> "Trainer.step"."""
    return qualname.rpartition("<locals>.")[2]


def _frame(running: Any) -> Frame:
    code = running.f_code
    return Frame(code.co_filename, running.f_lineno or 0, short_name(code.co_qualname))


def frame_here() -> Frame | None:
    """The innermost frame outside torch, vram and the standard library; else the innermost."""
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        frames.append(_frame(frame))
        frame = frame.f_back  # type: ignore[assignment]
    return telling_frame(frames)


def line_here() -> str:
    """ "file:line function" of `frame_here`."""
    return str(frame_here())


def telling_frame(frames: Sequence[Frame]) -> Frame | None:
    """The innermost of `frames` (innermost first) outside torch, vram and the standard library; else the innermost."""
    outside = [frame for frame in frames if not frame.internal]
    return next((frame for frame in outside if not _is_standard(frame.filename)), next(iter(outside or frames), None))


@functools.cache
def _is_standard(filename: str) -> bool:
    return filename.startswith(_STDLIB) and filename.find("-packages") <= 0


class Stacks:
    """Call stacks, innermost frame first; the same one is the same object."""

    def __init__(self, outermost: str = "") -> None:
        """`outermost`: a part of the file names where stacks end; "" for none."""
        self._outermost = outermost
        # Keys are ids of code objects and places in them: hashes of codes and numbers of lines take long. The codes are
        # kept alive beside the stack.
        self._known: dict[tuple[int, ...], tuple[tuple[Frame, ...], list[Any]]] = {}
        self._stacks: dict[tuple[Frame, ...], tuple[Frame, ...]] = {}

    def clear(self) -> None:
        """Forget them."""
        self._known.clear()
        self._stacks.clear()

    def here(self) -> tuple[Frame, ...]:
        """The caller's, from the innermost frame that is not ours to the outermost that what is traced has called."""
        places: list[int] = []
        frame, outermost = sys._getframe(1), self._outermost
        while frame is not None and len(places) < _MOST_PLACES:
            code = frame.f_code
            kind = _KINDS.get(filename := code.co_filename, _kind)
            if kind is _kind:
                kind = _KINDS[filename] = _kind(filename)
            if kind is None or (kind is _Kind.WRAPPER and places):
                if outermost and outermost in filename:
                    break
                places.append(id(code))
                places.append(frame.f_lasti)
            elif kind is _Kind.OURS and places:
                break  # what called the step is no part of it
            frame = frame.f_back  # type: ignore[assignment]
        known = self._known.get(key := tuple(places))
        if known is None:
            known = self._known[key] = self._made(sys._getframe(1), places[::2])
        return known[0]

    def _made(self, frame: Any, wanted: list[int]) -> tuple[tuple[Frame, ...], list[Any]]:
        """The stack of the codes with the ids `wanted`, from `frame` on, and the codes."""
        frames: list[Any] = []
        while len(frames) < len(wanted):
            if id(frame.f_code) == wanted[len(frames)]:
                frames.append(frame)
            frame = frame.f_back
        stack = tuple(map(_frame, frames))
        return self._stacks.setdefault(stack, stack), [each.f_code for each in frames]


class _Kind(Enum):
    """Files whose frames are no part of a stack."""

    OURS = auto()
    WITHIN = auto()  # ours too, but called by what is traced
    WRAPPER = auto()  # around our own dispatch where it is innermost, and left out; else around the operation


_KINDS: dict[str, _Kind | None] = {}  # by file name


def _kind(filename: str) -> _Kind | None:
    if filename.startswith(str(_OURS)):
        return _Kind.WITHIN if filename.startswith(_WITHIN) else _Kind.OURS
    return _Kind.WRAPPER if filename.endswith(_WRAPPERS) else None
