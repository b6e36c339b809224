"""Places: how an object sits in its owner, on a path of holders."""

from __future__ import annotations

import contextvars
import gc
import types
from collections.abc import Collection, Sequence
from contextlib import suppress
from threading import local
from typing import Any

import torch

from vram.explanation.holders.nouns import FRAMES, LRU, SEQUENCES, SUSPENDED
from vram.explanation.holders.objects import is_array, locals_of, module_of, namespace

# Attributes that native objects keep outside any namespace.
_NATIVE = ("grad_fn", "_result", "_exception", "__cause__", "__context__", "__traceback__", "old_value")
_BOUND = (types.MethodType, types.BuiltinMethodType)
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
# The kind of place, the place's name, and the owner's index in the path.
Place = tuple[str, str, int]


def place_in(path: Sequence[Any], i: int) -> Place:
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


def _in_dict(path: Sequence[Any], i: int) -> Place | None:
    child, (parent, after, beyond) = path[i], _after(path, i)
    if not issubclass(type(parent), dict):
        return None
    key = _key(parent, child)
    if module_of(parent) is not None:
        return "global", key, i + 1
    if type(after) is types.ModuleType:
        return "global", key, i + 2
    if type(after) is LRU:
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


def _in_function(path: Sequence[Any], i: int) -> Place | None:
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


def _in_sequence(path: Sequence[Any], i: int) -> Place | None:
    parent = path[i + 1]
    return ("item", "", i + 1) if issubclass(type(parent), SEQUENCES) or is_array(parent) else None


def _in_frame(path: Sequence[Any], i: int) -> Place | None:
    child, parent = path[i], path[i + 1]
    if type(child) in FRAMES and (type(parent) in FRAMES or issubclass(type(parent), BaseException)):
        # A frame is kept by those it called, by tracebacks, and so at last by an exception; or by who asked for it.
        j = i + 1
        while type(path[j]) in FRAMES and j + 1 < len(path):
            j += 1
        if type(path[j]) in FRAMES or issubclass(type(path[j]), BaseException):
            return "traceback", "", j
        return place_in(path, j - 1)
    if type(parent) is types.FrameType:
        return "local", _local_name(parent, child), i + 1
    if type(parent) in SUSPENDED:
        frame = getattr(parent, f"{SUSPENDED[type(parent)][0]}_frame")
        return "local", _local_name(frame, child), i + 1
    return None


def _in_native(path: Sequence[Any], i: int) -> Place | None:
    child, parent = path[i], path[i + 1]
    if type(parent) is LRU:
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
