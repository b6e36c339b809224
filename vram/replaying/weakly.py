"""References to a step and its samples that keep nothing alive: enough to run them again while others keep them."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from types import CellType, FunctionType, MethodType
from typing import Any, TypeAlias

_DEEPEST = 8  # functions in functions, lists in lists
_NUMBERS = frozenset({int, float, complex, bool, str, bytes, type(None)})

Reference: TypeAlias = Callable[[], Any]


class Gone(Exception):
    """Somebody let go of what a reference needs."""


def weakly(value: Any, depth: int = _DEEPEST) -> Reference:
    """A function that returns `value`, or one made of the same parts, and raises Gone where a part is not alive.

    Functions and containers are taken apart: a lambda ends with the call that it was written in, what it uses may not.
    """
    kind = type(value)
    if kind in _NUMBERS:
        return lambda: value
    if not depth:
        return _gone
    if kind is FunctionType:
        return _function(value, depth)
    if kind is MethodType:
        function, owner = weakly(value.__func__, depth - 1), weakly(value.__self__, depth - 1)
        return lambda: MethodType(function(), owner())
    if kind is functools.partial:
        parts = weakly([value.func, list(value.args), dict(value.keywords)], depth - 1)
        return lambda: _partial(*parts())
    if kind in (list, tuple, set, dict):
        return _container(value, depth)
    try:
        reference = weakref.ref(value)
    except TypeError:
        return _gone if gc.is_tracked(value) else lambda: value  # a range, a slice of bytes: no tensors in it
    return lambda: _alive(reference)


def _function(function: FunctionType, depth: int) -> Reference:
    """The same code in the same module, with what its closure and defaults hold now."""
    cells = [weakly(_content(cell), depth - 1) for cell in function.__closure__ or ()]
    defaults, named = weakly(function.__defaults__, depth - 1), weakly(function.__kwdefaults__, depth - 1)
    code, module_globals, name = function.__code__, function.__globals__, function.__qualname__

    def made() -> FunctionType:
        closure = tuple(CellType(cell()) for cell in cells)
        twin = FunctionType(code, module_globals, code.co_name, defaults(), closure)
        twin.__kwdefaults__, twin.__qualname__ = named(), name
        return twin

    return made


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that is assigned later, or was deleted
        return None


def _container(value: Any, depth: int) -> Reference:
    kind = type(value)
    items = list(value.items()) if kind is dict else list(value)
    if kind is not dict and _NUMBERS.issuperset(map(type, items)):
        return lambda: value
    parts = [weakly(item, depth - 1) for item in items]
    return lambda: kind(part() for part in parts)


def _partial(function: Any, args: list[Any], keywords: dict[str, Any]) -> functools.partial[Any]:
    return functools.partial(function, *args, **keywords)


def _alive(reference: weakref.ref[Any]) -> Any:
    value = reference()
    if value is None:
        raise Gone
    return value


def _gone() -> Any:
    raise Gone
