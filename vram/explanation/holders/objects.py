"""Python objects as the search for holders sees them: names, namespaces, running functions. No code of theirs runs.

Types are compared, without `isinstance`, which would run the `__class__` property of a lazy proxy.
"""

from __future__ import annotations

import gc
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vram.frames import short_name

_NOT_USERS = ("vram", "_pytest", "pluggy", "pytest")  # modules whose running frames name nothing to a user


def is_name(obj: Any, named: Mapping[int, str], locals_: Mapping[int, Any]) -> bool:
    """Whether a user knows `obj` by a name: a module, a class, a running function's local, or one of `named`."""
    return (
        id(obj) in named
        or id(obj) in locals_
        or issubclass(type(obj), type | types.ModuleType)
        or module_of(obj) is not None
    )


def module_of(obj: Any) -> str | None:
    """The name of the module whose namespace `obj` is."""
    if type(obj) is not dict:
        return None
    name = obj.get("__name__")
    module = sys.modules.get(name) if type(name) is str else None
    return name if type(module) is types.ModuleType and module.__dict__ is obj else None


def is_array(obj: Any) -> bool:
    """Whether `obj` is a NumPy array; NumPy is not imported for it."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(obj) is numpy.ndarray


def array_kinds() -> tuple[type, ...]:
    """The type of NumPy's arrays; NumPy is not imported for it."""
    numpy = sys.modules.get("numpy")
    return () if numpy is None else (numpy.ndarray,)


def referents(obj: Any) -> list[Any]:
    """The objects that `obj` refers to; a module only to its namespace.

    Native modules have more, and in Python 3.12 `_asyncio` names what is dead: whoever touches that breaks its list of
    free objects, and the next look at it never ends.
    """
    if issubclass(type(obj), types.ModuleType):
        return [namespace(obj)]
    if not is_array(obj):
        return gc.get_referents(obj)
    # An array of numbers shares memory with its base, and is found by that.
    return [item for item in (obj.base, *obj.flat) if item is not None] if obj.dtype == object else []


def namespace(obj: Any) -> Any:
    """The `__dict__` of `obj`; empty where it has none."""
    try:
        return object.__getattribute__(obj, "__dict__")
    except AttributeError:
        return {}


def running_locals() -> dict[int, tuple[str, str]]:
    """Local variables of users' functions that run now, in any thread: id -> (name, "function (file:line)").

    Variables shared with an inner function are left out: that function's closure says more.
    """
    names: dict[int, tuple[str, str]] = {}

    def look(frame: types.FrameType) -> None:
        home = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        code = frame.f_code
        if home not in _NOT_USERS and code.co_flags & inspect.CO_OPTIMIZED:  # a function, whose locals are apart
            for name, value in locals_of(frame):
                # pytest's rewritten assertions have variables of their own, as in "@py_assert1".
                if name in code.co_varnames and name not in code.co_cellvars and name.isidentifier():
                    names.setdefault(id(value), (name, place_of(frame)))

    _each_running(look)
    return names


def running_frames() -> set[int]:
    """The ids of all frames that run now, those of this search among them."""
    ids: set[int] = set()
    _each_running(lambda frame: ids.add(id(frame)))
    return ids


def _each_running(look: Callable[[types.FrameType], None]) -> None:
    """Call `look` on every frame that runs now, from the innermost out, but for this function's."""
    for frame in sys._current_frames().values():
        outer: types.FrameType | None = frame
        while outer is not None:
            if outer.f_code is not _each_running.__code__:
                look(outer)
            outer = outer.f_back
    # A frame in its own local is a cycle, and would keep all that the frames around it hold until the next collection.
    del frame


def place_of(frame: types.FrameType) -> str:
    """ "function (file:line)"."""
    return f"{short_name(frame.f_code.co_qualname)} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"


def locals_of(frame: types.FrameType) -> list[tuple[str, Any]]:
    """Names and values, without leaving the dictionary that reading them made in the frame full of references."""
    variables = frame.f_locals
    items = list(variables.items())
    # The frame and this variable refer to it, and the count's own argument: nobody who called locals() does.
    if type(variables) is dict and frame.f_code.co_flags & inspect.CO_OPTIMIZED and sys.getrefcount(variables) <= 3:
        variables.clear()
    return items
