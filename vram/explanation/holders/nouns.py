"""Nouns: what kind of object one is, with its name or size."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict, deque
from collections.abc import Callable
from threading import local
from typing import Any

from vram.explanation.holders.objects import is_array, module_of, place_of
from vram.frames import short_name

LRU = type(functools.lru_cache(lambda: None))
SUSPENDED = {
    types.GeneratorType: ("gi", "generator"),
    types.CoroutineType: ("cr", "coroutine"),
    types.AsyncGeneratorType: ("ag", "async generator"),
}
SEQUENCES = (list, tuple, set, frozenset, deque)
FRAMES = (types.FrameType, types.TracebackType)
_CONTAINERS = (OrderedDict, dict, *SEQUENCES)
_BOUND = (types.MethodType, types.BuiltinMethodType)


def noun_of(obj: Any) -> str:
    """The kind of object, with its name or size: "list (40 items)", "function step"."""
    kind = type(obj)
    if (module := module_of(obj)) is not None:
        return f"module {module}"
    if kind in _NOUNS:
        return _NOUNS[kind](obj)
    if is_array(obj):
        return f"NumPy array ({_items(obj.size)})"
    words = next((words for base, words in _NOUNS_OF_BASES.items() if issubclass(kind, base)), None)
    return words(obj) if words is not None else short_name(kind.__qualname__)


def _container(obj: Any) -> str:
    length = next(int(base.__len__(obj)) for base in _CONTAINERS if issubclass(type(obj), base))
    return f"{type(obj).__name__} ({_items(length)})"


def _items(length: int) -> str:
    return f"{length:,} item{'s' * (length != 1)}"


def _bound(obj: Any) -> str:
    function = obj.__func__ if type(obj) is types.MethodType else obj
    return f"bound method {short_name(getattr(function, '__qualname__', '?'))}"


def _suspended(obj: Any) -> str:
    return f"suspended {SUSPENDED[type(obj)][1]} {short_name(obj.__qualname__)}"


# The exact type is looked up: a subclass may have code of its own behind these attributes.
_NOUNS: dict[type, Callable[[Any], str]] = {
    types.ModuleType: lambda obj: f"module {obj.__name__}",
    types.FunctionType: lambda obj: f"function {short_name(obj.__qualname__)}",
    **dict.fromkeys(_BOUND, _bound),
    LRU: lambda obj: f"lru_cache of {short_name(obj.__wrapped__.__qualname__)}",
    **dict.fromkeys(SUSPENDED, _suspended),
    types.FrameType: place_of,
}
_NOUNS_OF_BASES: dict[type, Callable[[Any], str]] = {
    type: lambda obj: f"class {obj.__module__}.{short_name(obj.__qualname__)}",
    **dict.fromkeys(_CONTAINERS, _container),
    local: lambda obj: "thread-local",
    BaseException: lambda obj: f"exception {short_name(type(obj).__qualname__)}",
}
