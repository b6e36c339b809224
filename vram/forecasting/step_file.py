"""A function of a Python file, imported on a simulated card: what it takes, and how it is called."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

_BATCH = ("batch", "batch_size")  # sizes without a default begin at 1
_SAMPLES = "samples"


class BadStep(ValueError):
    """A file, a function or a size that is not there, in one line."""


@dataclass(frozen=True)
class StepFile:
    """`STEP` of `FILE.py`; see `parsed`."""

    path: Path
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"


@dataclass(frozen=True)
class Step:
    """A function that was imported: its sizes by name, and the samples that it takes, [()] where it takes none."""

    call: Callable[..., object]
    sizes: Mapping[str, int]
    samples: tuple[tuple[Any, ...], ...]


def parsed(text: str) -> StepFile:
    """The step that "FILE.py:STEP" names. Raises BadStep where there is no such file."""
    path, _, name = text.rpartition(":")
    if not path or not name.isidentifier():
        raise BadStep(f"the step must be FILE.py:FUNCTION, got {text!r}")
    if not Path(path).is_file():
        raise BadStep(f"the step's file must be there, got {path!r}")
    return StepFile(Path(path), name)


@contextmanager
def imported(file: StepFile) -> Iterator[ModuleType]:
    """The file as a module, as `python FILE.py` finds its imports; afterwards its folder's modules are forgotten, so
    that the next import makes everything anew."""
    folder = str(file.path.resolve().parent)
    before = set(sys.modules)
    sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(file.path.stem, file.path.resolve())
    if spec is None or spec.loader is None:
        raise BadStep(f"the step's file must be Python, called *.py, got {str(file.path)!r}")
    module = importlib.util.module_from_spec(spec)
    hidden = sys.modules.get(file.path.stem)
    sys.modules[file.path.stem] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(folder)
        for name in set(sys.modules) - before | {file.path.stem}:
            if _is_in(sys.modules.get(name), folder):
                del sys.modules[name]
        if hidden is not None:
            sys.modules[file.path.stem] = hidden


def step_of(module: ModuleType, file: StepFile, settings: Mapping[str, int], most_samples: int | None = None) -> Step:
    """The function, its sizes with those of `settings`, and the module's `samples` where it takes one.

    A size is a parameter whose default is a whole number, or that is called batch or batch_size. Raises BadStep for a
    function that is not there, a parameter that nobody has a value for, or a setting of no size.
    """
    function = getattr(module, file.name, None)
    if not callable(function):
        raise BadStep(f"{file.path} must have a function {file.name}, got {_functions(module) or 'none'}")
    parameters = [
        each
        for each in inspect.signature(function).parameters.values()
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    sizes = {each.name: _size(each) for each in parameters if _is_size(each)}
    others = [each for each in parameters if each.default is each.empty and not _is_size(each)]
    samples: tuple[tuple[Any, ...], ...] = ((),)
    if others:
        samples = _samples(module, file, others, most_samples)
    if unknown := settings.keys() - sizes.keys():
        raise BadStep(f"a setting must be one of {', '.join(sizes) or 'no sizes'}, got {', '.join(sorted(unknown))}")
    return Step(function, {**sizes, **settings}, samples)


def _samples(
    module: ModuleType, file: StepFile, others: list[inspect.Parameter], most: int | None
) -> tuple[tuple[Any, ...], ...]:
    """Each of the module's samples as the arguments of a call."""
    name = others[0].name
    if len(others) > 1 or not hasattr(module, _SAMPLES):
        raise BadStep(
            f"{file.name} must get its `{others[-1].name}` from somewhere: give a size its value as in "
            f"`{others[-1].name}=1`, or put `samples = [...]` into {file.path} for the one parameter that is none"
        )
    try:
        samples = tuple((sample,) for sample in getattr(module, _SAMPLES))[:most]
    except TypeError:
        raise BadStep(f"samples of {file.path} must be a list, for `{name}`") from None
    if not samples:
        raise BadStep(f"samples of {file.path} must have at least one, for `{name}`, got none")
    return samples


def _is_size(parameter: inspect.Parameter) -> bool:
    if parameter.default is parameter.empty:
        return parameter.name in _BATCH
    return type(parameter.default) is int and parameter.default > 0


def _size(parameter: inspect.Parameter) -> int:
    return 1 if parameter.default is parameter.empty else int(parameter.default)


def _functions(module: ModuleType) -> str:
    """Names of functions that the file itself defines."""
    own = (name for name, value in vars(module).items() if inspect.isfunction(value) and not name.startswith("_"))
    return ", ".join(name for name in own if getattr(module, name).__module__ == module.__name__)


def _is_in(module: ModuleType | None, folder: str) -> bool:
    file = getattr(module, "__file__", None)
    if not isinstance(file, str) or any(part in ("site-packages", "dist-packages") for part in Path(file).parts):
        return False
    return Path(file).resolve().is_relative_to(folder)
