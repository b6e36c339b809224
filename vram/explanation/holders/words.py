"""A chain of holders in words: the kind of each object, and the place where it sits in the next."""

from __future__ import annotations

import contextvars
import functools
import gc
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from threading import local
from typing import Any

import torch

from vram.explanation.holders.objects import (
    is_array,
    is_name,
    locals_of,
    module_of,
    namespace,
    place_of,
    running_locals,
)
from vram.explanation.holders.search import DEEPEST
from vram.frames import short_name

_LONGEST_WORDS = 300
_LRU = type(functools.lru_cache(lambda: None))
# Attributes that native objects keep outside any namespace.
_NATIVE = ("grad_fn", "_result", "_exception", "__cause__", "__context__", "__traceback__", "old_value")
_SUSPENDED = {
    types.GeneratorType: ("gi", "generator"),
    types.CoroutineType: ("cr", "coroutine"),
    types.AsyncGeneratorType: ("ag", "async generator"),
}
_SEQUENCES = (list, tuple, set, frozenset, deque)
_CONTAINERS = (OrderedDict, dict, *_SEQUENCES)
_BOUND = (types.MethodType, types.BuiltinMethodType)
_FRAMES = (types.FrameType, types.TracebackType)
# torch.nn.Module's own dictionaries, by what they hold.
_IN_MODULE = {
    "_modules": "submodule",
    "_parameters": "parameter",
    "_buffers": "buffer",
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}
# How an object sits in its owner: the kind of place, the place's name, and the owner's index in the path.
_Slot = tuple[str, str, int]


def in_words(path: Sequence[Any], named: Mapping[int, str]) -> str:
    """The chain in words: "list `losses` (40 items), attribute of Trainer `TRAINER`, global of module train"."""
    words = _Words(path, named, running_locals()).text()
    if len(words) <= _LONGEST_WORDS:
        return words
    half = _LONGEST_WORDS // 2 - 3
    return f"{words[:half]} ... {words[-half:]}"


class _Words:
    """Words of one path. `i` walks from the target (0) outward; plumbing between two steps is skipped."""

    def __init__(self, path: Sequence[Any], named: Mapping[int, str], locals_: Mapping[int, tuple[str, str]]) -> None:
        self.path, self.named, self.locals = path, named, locals_

    def text(self) -> str:
        kind, name, i = _slot(self.path, 0)
        if kind == "item":
            return self._phrase(i)
        return f"{kind} {name} of {self._phrase(i)}" if name else f"{kind} of {self._phrase(i)}"

    def _phrase(self, i: int) -> str:
        obj = self.path[i]
        if id(obj) in self.named:
            return self.named[id(obj)]
        noun = _noun(obj)
        if i == len(self.path) - 1:
            if id(obj) in self.locals:
                name, where = self.locals[id(obj)]
                return _called(noun, f"`{name}`", f"local of {where}")
            return noun if is_name(obj, self.named, self.locals) else self._loose(noun)
        links, last = self._links(i)
        noun = f"{noun} ({links} link{'s' * (links != 1)} on)" if links else noun
        kind, name, j = _slot(self.path, last)
        rest = self._phrase(j)
        if kind == "item":
            return f"{noun} in {rest}"
        if kind == "traceback":
            return f"{noun}, in the traceback of {rest}"
        if kind == "key":
            return f"{noun} at key {name} of {rest}"
        return _called(noun, name, f"{kind} of {rest}")

    def _loose(self, noun: str) -> str:
        """The end of a path that comes to no name."""
        if type(self.path[-1]) is contextvars.Context:
            return "a thread's context"
        return f"{noun} and so on" if len(self.path) > DEEPEST else f"{noun} that native code keeps"

    def _links(self, i: int) -> tuple[int, int]:
        """How many steps on from path[i] each is like the one before it, and where that ends.

        Or like the second or third before it, if there are three such rounds: a partial of a partial's method.
        """
        at, steps = [i], []
        while at[-1] < len(self.path) - 1:
            kind, name, j = _slot(self.path, at[-1])
            steps.append((type(self.path[at[-1]]), kind, name))
            at.append(j)
        for period, least in ((1, 1), (2, 4), (3, 6)):
            links = 0
            while links + period < len(steps) and steps[links + period] == steps[links]:
                links += 1
            links -= links % period
            if links >= least:
                return links, at[links]
        return 0, i


def _called(noun: str, name: str, place: str) -> str:
    """ "list `losses` (40 items), attribute of ...": the name stands before the size."""
    if name and not noun.endswith(name.strip("`")):  # a function, mostly, called what its place is called
        head, bracket, size = noun.partition(" (")
        noun = f"{head} {name}{bracket}{size}"
    return f"{noun}, {place}"


def _slot(path: Sequence[Any], i: int) -> _Slot:
    """How path[i] sits in its owner."""
    for place in (_in_dict, _in_function, _in_sequence, _in_frame, _in_native):
        slot = place(path, i)
        if slot is not None:
            return slot
    return "attribute", _attribute_name(path[i + 1], path[i]), i + 1


def _after(path: Sequence[Any], i: int) -> tuple[Any, Any, Any]:
    """The owner of path[i], its owner, and that one's; None past the end."""
    parent, after, beyond = (path[j] if j < len(path) else None for j in (i + 1, i + 2, i + 3))
    return parent, after, beyond


def _in_dict(path: Sequence[Any], i: int) -> _Slot | None:
    child, (parent, after, beyond) = path[i], _after(path, i)
    if not issubclass(type(parent), dict):
        return None
    key = _key(parent, child)
    if module_of(parent) is not None:
        return "global", key, i + 1
    if type(after) is types.ModuleType:
        return "global", key, i + 2
    if type(after) is _LRU:
        return _place_in_cache(after, child), "", i + 2
    if issubclass(type(after), type) and type(parent) is dict and parent.keys() == after.__dict__.keys():
        return "class attribute", key, i + 2
    if type(after) is types.FunctionType:
        return ("default argument" if after.__kwdefaults__ is parent else "attribute"), key, i + 2
    if namespace(after) is parent:
        return "attribute", key, i + 2
    if type(parent) is dict and type(after) is dict and issubclass(type(beyond), local):
        return "attribute", key, i + 3
    if any(parent is hooks for hooks in _gradient_hooks(after)):
        return "gradient hook", "", i + 2
    # A dictionary of torch.nn.Module: in the module itself, or in the module's own namespace.
    for owner, at in ((after, i + 2), (beyond, i + 3)):
        kind = _in_module(owner, parent)
        if kind is not None:
            return kind, "" if "hook" in kind else key, at
    return "key", key, i + 1


def _in_module(owner: Any, held_in: dict[Any, Any]) -> str | None:
    """The kind of entries of one of a torch.nn.Module's own dictionaries."""
    if not issubclass(type(owner), torch.nn.Module):
        return None
    return next((kind for name, kind in _IN_MODULE.items() if namespace(owner).get(name) is held_in), None)


def _in_function(path: Sequence[Any], i: int) -> _Slot | None:
    child, (parent, after, beyond) = path[i], _after(path, i)
    if issubclass(type(parent), types.CellType):
        if type(after) is tuple and type(beyond) is types.FunctionType and beyond.__closure__ is after:
            names = beyond.__code__.co_freevars
            return "closure variable", _quoted(names, [cell is parent for cell in after]), i + 3
        return "closure variable", "", i + 2 if after is not None else i + 1
    if type(parent) is tuple and type(after) is types.FunctionType and after.__defaults__ is parent:
        code = after.__code__
        names = code.co_varnames[code.co_argcount - len(parent) : code.co_argcount]
        return "default argument", _quoted(names, [value is child for value in parent]), i + 2
    return None


def _in_sequence(path: Sequence[Any], i: int) -> _Slot | None:
    parent = path[i + 1]
    return ("item", "", i + 1) if issubclass(type(parent), _SEQUENCES) or is_array(parent) else None


def _in_frame(path: Sequence[Any], i: int) -> _Slot | None:
    child, parent = path[i], path[i + 1]
    if type(child) in _FRAMES and (type(parent) in _FRAMES or issubclass(type(parent), BaseException)):
        # A frame is kept by those it called, by tracebacks, and so at last by an exception; or by who asked for it.
        j = i + 1
        while type(path[j]) in _FRAMES and j + 1 < len(path):
            j += 1
        if type(path[j]) in _FRAMES or issubclass(type(path[j]), BaseException):
            return "traceback", "", j
        return _slot(path, j - 1)
    if type(parent) is types.FrameType:
        return "local", _local_name(parent, child), i + 1
    if type(parent) in _SUSPENDED:
        frame = getattr(parent, f"{_SUSPENDED[type(parent)][0]}_frame")
        return "local", _local_name(frame, child), i + 1
    return None


def _in_native(path: Sequence[Any], i: int) -> _Slot | None:
    child, parent = path[i], path[i + 1]
    if type(parent) is _LRU:
        return _place_in_cache(parent, child), "", i + 1
    if type(parent).__name__.startswith("hamt"):  # how a contextvars.Context keeps its values
        j = i + 1
        while j + 1 < len(path) and type(path[j]).__name__.startswith("hamt"):
            j += 1
        return "context variable", _variable_name(path[j], child), j
    return ("self", "", i + 1) if type(parent) in _BOUND else None


def _place_in_cache(cache: Any, child: Any) -> str:
    """Whether an lru_cache keeps `child` as an argument of a call or as its result."""
    entries = [part for part in gc.get_referents(cache) if type(part) is dict]
    return "argument" if any(key is child for entry in entries for key in entry) else "result"


def _variable_name(context: Any, child: Any) -> str:
    """The context variable that has `child` for its value."""
    variables = list(contextvars.Context.items(context)) if type(context) is contextvars.Context else []
    return next((f"`{variable.name}`" for variable, value in variables if value is child), "")


def _gradient_hooks(obj: Any) -> tuple[Any, ...]:
    """The dictionaries of a tensor's hooks."""
    if not issubclass(type(obj), torch.Tensor):
        return ()
    return tuple(getattr(obj, name, None) for name in ("_backward_hooks", "_post_accumulate_grad_hooks"))


def _quoted(names: Sequence[str], hits: Collection[bool]) -> str:
    return next((f"`{name}`" for name, hit in zip(names, hits, strict=False) if hit), "")


def _key(held_in: dict[Any, Any], child: Any) -> str:
    for key, value in dict.items(held_in):
        if value is child:
            if type(key) is str:
                return f"`{key}`" if len(key) <= 40 else f"`{key[:37]}...`"
            if type(key) in (int, bool, float, type(None)):
                return f"`{key!r}`"
            return f"(a {type(key).__name__})"
        if key is child:
            return "(as key)"
    return ""


def _attribute_name(owner: Any, child: Any) -> str:
    attributes = namespace(owner)
    if type(attributes) is dict:
        for name, value in attributes.items():
            if value is child:
                return f"`{name}`"
    for kind in type(owner).__mro__:
        for name, member in kind.__dict__.items():
            if type(member) is types.MemberDescriptorType or name in _NATIVE:
                with suppress(AttributeError):  # a slot that is not set
                    if member.__get__(owner) is child:
                        return f"`{name}`"
    return ""


def _local_name(frame: types.FrameType | None, child: Any) -> str:
    items = locals_of(frame) if frame is not None else []
    return next((f"`{name}`" for name, value in items if value is child), "")


def _noun(obj: Any) -> str:
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
    return f"suspended {_SUSPENDED[type(obj)][1]} {short_name(obj.__qualname__)}"


# The exact type is looked up: a subclass may have code of its own behind these attributes.
_NOUNS: dict[type, Callable[[Any], str]] = {
    types.ModuleType: lambda obj: f"module {obj.__name__}",
    types.FunctionType: lambda obj: f"function {short_name(obj.__qualname__)}",
    **dict.fromkeys(_BOUND, _bound),
    _LRU: lambda obj: f"lru_cache of {short_name(obj.__wrapped__.__qualname__)}",
    **dict.fromkeys(_SUSPENDED, _suspended),
    types.FrameType: place_of,
}
_NOUNS_OF_BASES: dict[type, Callable[[Any], str]] = {
    type: lambda obj: f"class {obj.__module__}.{short_name(obj.__qualname__)}",
    **dict.fromkeys(_CONTAINERS, _container),
    local: lambda obj: "thread-local",
    BaseException: lambda obj: f"exception {short_name(type(obj).__qualname__)}",
}
