"""Who keeps a tensor alive: the chain of Python objects from it to a name that a user would recognise.

Found through the garbage collector's referrers, nearest name first. A search keeps nothing and calls no code of the
objects it looks at.
"""

from __future__ import annotations

import contextvars
import functools
import gc
import inspect
import sys
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import compress
from pathlib import Path
from threading import local
from typing import Any

import torch

from vram.frames import short_name
from vram.torch_hooks.storages import storages_of

_DEEPEST = 100  # links of a list of one's own; dead ends end by themselves
_WIDEST = 20_000  # objects in one level: past this a chain says nothing any more
_LONGEST_WORDS = 300
_MOST_CANDIDATES = 50  # that a search begins with: each object of the process is compared with all of them
_NOT_USERS = ("vram", "_pytest", "pluggy", "pytest")  # modules whose running frames name nothing to a user
_LRU = type(functools.lru_cache(lambda: None))
# Attributes that native objects keep outside any namespace.
_NATIVE = ("grad_fn", "_result", "_exception", "__cause__", "__context__", "__traceback__", "old_value")
_SUSPENDED = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
_CODE_OF = {types.GeneratorType: "gi", types.CoroutineType: "cr", types.AsyncGeneratorType: "ag"}
_SEQUENCES = (list, tuple, set, frozenset, deque)
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


def holder(storage: Any, *, named: Mapping[int, str] | None = None) -> str:
    """Words for what keeps `storage` (a `torch.UntypedStorage`) alive, from nearest holder to a known name.

    `named` gives ids of objects that are a name by themselves, with what to call them. The collector must not be
    frozen: see `vram.replaying.collector.unfrozen`.
    """
    # What a tensor's subclass answers is code of its own, and may be an error.
    with torch._C.DisableTorchFunctionSubclass():
        return _holder(storage, named or {})


def _holder(storage: Any, named: Mapping[int, str]) -> str:
    # One search at a time, and its list of tensors let go of before the next: ours would be found as a holder.
    path = _path_to_tensor(storage, named)
    if len(path) == 1 and id(path[0]) in named:
        return named[id(path[0])]
    if len(path) == 1 and (local_of := _running_locals().get(id(path[0]))) is not None:
        return f"local `{local_of[0]}` of {local_of[1]}"
    if len(path) > 1:
        return in_words(path, named) + _view(path[0], storage)
    del path
    how, path = _path_to_graph(storage._cdata, named)
    if not path:
        how, path = "NumPy array", _path_to_array(storage._cdata, named)
    if path:
        return f"{how} held by {in_words(path, named) if len(path) > 1 else 'native code'}"
    return "nothing that Python's collector can see: native code keeps it"


def _view(found: Any, storage: Any) -> str:
    dense = issubclass(type(found), torch.Tensor) and found.layout is torch.strided
    own_bytes = found.numel() * found.element_size() if dense else 0
    return f" (a view of {own_bytes:,} B keeps the whole storage)" if 0 < own_bytes < storage.nbytes() else ""


def path_to_name(targets: Sequence[object], named: Mapping[int, str]) -> list[Any]:
    """The shortest chain of referrers from one of `targets` to a module, class, running local or `named` object.

    Without such an end, the longest chain found. The first of the list is the target.
    """
    locals_ = _running_locals()
    path = _search(targets, named, locals_, ())
    if not _is_name(path[-1], named, locals_) and (unasked := [*_tasks(), *_unseen(targets)]):
        del path  # ours would be found as a holder
        path = _search(targets, named, locals_, unasked)
    return path


def _search(
    targets: Sequence[object], named: Mapping[int, str], locals_: Mapping[int, Any], unasked: Sequence[Any]
) -> list[Any]:
    """See `path_to_name`. Those `unasked` by the collector are asked too whether they refer to something."""
    child_of: dict[int, Any] = {}
    level: list[Any] = list(targets)
    seen = {id(target) for target in targets}
    own = {id(targets), id(child_of), id(seen), id(named), id(unasked)}
    mark = object()  # the last argument below: in Python 3.13 the tuple of arguments is among its own answers
    last = level[0]
    for _ in range(_DEEPEST):
        roots = [found for found in level if _is_name(found, named, locals_)]
        if roots:
            return _chain(min(roots, key=lambda root: _rank(root, named)), child_of)
        own.add(id(level))
        running = _running()
        ids = {id(found) for found in level}
        following: list[Any] = []
        own.add(id(following))
        for referrer in (*gc.get_referrers(*level, mark), *unasked):
            # By type: isinstance would run the __class__ property of a lazy proxy.
            if id(referrer) in seen or id(referrer) in own or id(referrer) in running:
                continue
            if type(referrer) is tuple and referrer and referrer[-1] is mark:
                continue
            child = next((held for held in _referents([referrer]) if id(held) in ids), None)
            if child is None:
                continue
            seen.add(id(referrer))
            child_of[id(referrer)] = child
            following.append(referrer)
        if not following or len(following) > _WIDEST:
            break
        level = following
        last = level[0]
    return _chain(last, child_of)


def _tasks() -> list[Any]:
    """All tasks of asyncio: asked who refers to a task's result, the collector of CPython 3.11 does not name it."""
    asyncio = sys.modules.get("asyncio")
    task = None if asyncio is None else asyncio.Task
    return [found for found in gc.get_objects() if type(found) is task]


def _unseen(targets: Sequence[object]) -> list[Any]:
    """What the collector does not know: NumPy arrays, and the dictionaries and tuples that hold them and plain values.

    Empty where none can hold `targets`: all arrays are of numbers, and so is no target.
    """
    loose = _loose()
    arrays = {id(found): found for found in loose if _is_array(found)}
    if not any(array.dtype == object for array in arrays.values()) and not any(map(_is_array, targets)):
        return []
    keeping: dict[int, Any] = {}
    while arrays:
        keeping |= arrays
        holding = ((found, _referents([found])) for found in loose if id(found) not in keeping)
        arrays = {id(found): found for found, held in holding if any(id(each) in keeping for each in held)}
    return list(keeping.values())


def _loose() -> list[Any]:
    """NumPy arrays, dictionaries and tuples that the collector does not know."""
    if "numpy" not in sys.modules:
        return []
    kinds = {dict, tuple, sys.modules["numpy"].ndarray}
    loose: dict[int, Any] = {}
    following = _referents(gc.get_objects())
    while following:
        # By whole lists: a process refers to millions of objects, and nearly all are of other kinds.
        alike = compress(following, map(kinds.__contains__, map(type, following)))
        more = {id(found): found for found in alike if not gc.is_tracked(found) and id(found) not in loose}
        loose |= more
        following = _referents(list(more.values()))
    return list(loose.values())


def in_words(path: Sequence[Any], named: Mapping[int, str]) -> str:
    """The chain in words: "list `losses` (40 items), attribute of Trainer `TRAINER`, global of module train"."""
    words = _Words(path, named, _running_locals()).text()
    if len(words) <= _LONGEST_WORDS:
        return words
    half = _LONGEST_WORDS // 2 - 3
    return f"{words[:half]} ... {words[-half:]}"


def _chain(root: Any, child_of: Mapping[int, Any]) -> list[Any]:
    path = [root]
    while id(path[-1]) in child_of:
        path.append(child_of[id(path[-1])])
    return path[::-1]


def _is_name(found: Any, named: Mapping[int, str], locals_: Mapping[int, Any]) -> bool:
    return (
        id(found) in named
        or id(found) in locals_
        or issubclass(type(found), type | types.ModuleType)
        or _module_of(found) is not None
    )


def _rank(root: Any, named: Mapping[int, str]) -> int:
    """Of names equally near, a module's or a class's is the one to mend; a local or the step's own says least."""
    if _module_of(root) is not None:
        return 0
    return 1 if issubclass(type(root), type | types.ModuleType) else 3 if id(root) in named else 2


def _module_of(found: Any) -> str | None:
    """The name of the module whose namespace `found` is."""
    if type(found) is not dict:
        return None
    name = found.get("__name__")
    module = sys.modules.get(name) if type(name) is str else None
    return name if type(module) is types.ModuleType and module.__dict__ is found else None


def _running_locals() -> dict[int, tuple[str, str]]:
    """Local variables of users' functions that run now, in any thread: id -> (name, "function (file:line)").

    Variables shared with an inner function are left out: that function's closure says more.
    """
    found: dict[int, tuple[str, str]] = {}

    def look(frame: types.FrameType) -> None:
        home = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        code = frame.f_code
        if home not in _NOT_USERS and code.co_flags & inspect.CO_OPTIMIZED:  # a function, whose locals are apart
            for name, value in _locals_of(frame):
                # pytest's rewritten assertions have variables of their own, as in "@py_assert1".
                if name in code.co_varnames and name not in code.co_cellvars and name.isidentifier():
                    found.setdefault(id(value), (name, _place(frame)))

    _each_running(look)
    return found


def _each_running(look: Callable[[types.FrameType], None]) -> None:
    """Call `look` on every frame that runs now, from the innermost out, but for those of this search."""
    for frame in sys._current_frames().values():
        outer: types.FrameType | None = frame
        while outer is not None:
            if outer.f_code is not _each_running.__code__:
                look(outer)
            outer = outer.f_back
    # A frame in its own local is a cycle, and would keep all that the frames around it hold until the next collection.
    del frame


def _place(frame: types.FrameType) -> str:
    return f"{short_name(frame.f_code.co_qualname)} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"


def _locals_of(frame: types.FrameType) -> list[tuple[str, Any]]:
    """Names and values, without leaving the dictionary that asking for them made in the frame full of references."""
    variables = frame.f_locals
    items = list(variables.items())
    # The frame and this variable refer to it, and the count's own argument: nobody who called locals() does.
    if type(variables) is dict and frame.f_code.co_flags & inspect.CO_OPTIMIZED and sys.getrefcount(variables) <= 3:
        variables.clear()
    return items


def _running() -> set[int]:
    ids: set[int] = set()
    _each_running(lambda frame: ids.add(id(frame)))
    return ids


def _tensors() -> list[torch.Tensor]:
    return _tensors_among(gc.get_objects())


def _tensors_among(objects: Sequence[Any]) -> list[torch.Tensor]:
    # By type: isinstance would run the __class__ property of any lazy proxy, and take much longer.
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, torch.Tensor)}
    return list(compress(objects, map(kinds.__contains__, map(type, objects))))


def _path_to_tensor(storage: Any, named: Mapping[int, str]) -> list[Any]:
    """The path of `path_to_name` from a tensor on `storage`, or from the storage itself where no tensor is left."""
    return path_to_name([found for found in _tensors() if _keeps(found, storage._cdata)] or [storage], named)


def _held_tensors() -> list[torch.Tensor]:
    """Tensors that a Python object or a running function holds; others live only inside graphs, and name nothing."""
    objects = gc.get_objects()
    tensors = _tensors_among(objects)
    ids = set(map(id, tensors))
    # One call for all of them: a million objects, one by one, take seconds.
    held = ids.intersection(map(id, _referents(objects))) | ids.intersection(_running_locals())
    return [tensor for tensor in tensors if id(tensor) in held]


def _referents(objects: Sequence[Any]) -> list[Any]:
    """What `objects` refer to, arrays of objects too; modules only to their namespaces.

    Native modules have more, and in Python 3.12 `_asyncio` names what is dead: whoever touches that breaks its list of
    free objects, and the next look at it never ends.
    """
    kinds = set(map(type, objects))
    modules = {kind for kind in kinds if issubclass(kind, types.ModuleType)}
    others = compress(objects, map(kinds.difference(modules).__contains__, map(type, objects)))
    namespaces = [object.__getattribute__(found, "__dict__") for found in objects if type(found) in modules]
    numpy = sys.modules.get("numpy")
    if numpy is None or numpy.ndarray not in kinds:
        return gc.get_referents(*others) + namespaces
    arrays = [found for found in objects if type(found) is numpy.ndarray and found.dtype == object]
    held = [item for array in arrays for item in (array.base, *array.flat) if item is not None]
    return gc.get_referents(*others) + namespaces + held


def _keeps(tensor: torch.Tensor, address: int) -> bool:
    """Whether the storage at `address` is the tensor's, or one of its parts'."""
    return any(storage._cdata == address for storage in storages_of(tensor))


def _path_to_array(address: int, named: Mapping[int, str]) -> list[Any]:
    """The path from a NumPy array that shares a tensor of the storage at `address`. Empty where there is none.

    Arrays are none of the collector's objects: their holders are asked.
    """
    ids = {id(tensor) for tensor in _tensors() if _keeps(tensor, address)}
    sharing = [found for found in _loose() if _is_array(found) and id(_root_of(found)) in ids] if ids else []
    del sharing[_MOST_CANDIDATES:]
    return path_to_name(sharing, named) if sharing else []


def _root_of(array: Any) -> Any:
    """What an array is a view of at last, where that is no array."""
    base = array
    while type(base) is type(array):
        base = base.base
    return base


def _path_to_graph(address: int, named: Mapping[int, str]) -> tuple[str, list[Any]]:
    """What keeps the storage at `address`, and the path from its tensor: one with such a gradient, or such a graph.

    Of several the one that is nearest to a name. The path is empty where there is none.
    """
    tensors = _held_tensors()
    owners = [tensor for tensor in tensors if tensor.is_leaf and _gradient_keeps(tensor, address)]
    how = "gradient of a tensor"
    if not owners:
        guilty = _nodes_keeping(address, [tensor.grad_fn for tensor in tensors])
        owners = [tensor for tensor in tensors if tensor.grad_fn in guilty]
        how = ""
    del tensors, owners[_MOST_CANDIDATES:]
    path = path_to_name(owners, named) if owners else []
    if path and not how:
        how = f"autograd graph ({guilty[path[0].grad_fn]}) of a tensor"
    return how, path


def _gradient_keeps(tensor: torch.Tensor, address: int) -> bool:
    return tensor.grad is not None and _keeps(tensor.grad, address)


def _nodes_keeping(address: int, nodes: Sequence[Any]) -> dict[Any, str]:
    """Nodes of autograd graphs, from `nodes` on, through which one comes to what saved the storage at `address`.

    With the name of the node that did.
    """
    behind: dict[Any, list[Any]] = {node: [] for node in nodes if node is not None}  # the nodes that lead to a node
    waiting = list(behind)
    found: dict[Any, str] = {}
    names: dict[type, list[str]] = {}  # of what a kind of node saves: asking takes longer than all the rest
    while waiting and len(behind) < _WIDEST:
        node = waiting.pop()
        if type(node) not in names:
            names[type(node)] = _saved_names(type(node))
        if any(_keeps(saved, address) for saved in _saved_by(node, names[type(node)])):
            found[node] = node.name()
        for following, _ in node.next_functions:
            if following is None:
                continue
            if following not in behind:
                behind[following] = []
                waiting.append(following)
            behind[following].append(node)
    waiting = list(found)
    while waiting:
        node = waiting.pop()
        for before in behind[node]:
            if before not in found:
                found[before] = found[node]
                waiting.append(before)
    return found


def _saved_names(kind: type) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_saved_") or name == "saved_tensors"]


def _saved_by(node: Any, names: Sequence[str]) -> Iterator[torch.Tensor]:
    for name in names:
        try:
            value = getattr(node, name)
        except RuntimeError:
            continue  # freed by a backward pass
        for saved in value if isinstance(value, list | tuple) else (value,):
            if isinstance(saved, torch.Tensor):
                yield saved


class _Words:
    """Words of one path. `i` walks from the target (0) outward; plumbing between two steps is skipped."""

    def __init__(self, path: Sequence[Any], named: Mapping[int, str], locals_: Mapping[int, tuple[str, str]]) -> None:
        self.path, self.named, self.locals = path, named, locals_

    def text(self) -> str:
        kind, name, i = self._slot(0)
        if kind == "item":
            return self._phrase(i)
        return f"{kind} {name} of {self._phrase(i)}" if name else f"{kind} of {self._phrase(i)}"

    def _phrase(self, i: int) -> str:
        found = self.path[i]
        if id(found) in self.named:
            return self.named[id(found)]
        noun = _noun(found)
        if i == len(self.path) - 1:
            if id(found) in self.locals:
                name, where = self.locals[id(found)]
                return _called(noun, f"`{name}`", f"local of {where}")
            return noun if _is_name(found, self.named, self.locals) else self._loose(noun)
        links, last = self._links(i)
        noun = f"{noun} ({links} link{'s' * (links != 1)} on)" if links else noun
        kind, name, j = self._slot(last)
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
        return f"{noun} and so on" if len(self.path) > _DEEPEST else f"{noun} that native code keeps"

    def _links(self, i: int) -> tuple[int, int]:
        """How many steps on from path[i] each is like the one before it, and where that ends.

        Or like the second or third before it, if there are three such rounds: a partial of a partial's method.
        """
        at, steps = [i], []
        while at[-1] < len(self.path) - 1:
            kind, name, j = self._slot(at[-1])
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

    def _at(self, i: int) -> Any:
        return self.path[i] if i < len(self.path) else None

    def _slot(self, i: int) -> tuple[str, str, int]:
        """How path[i] sits in its owner: what kind of place, the place's name, and the owner's index."""
        child, parent = self.path[i], self._at(i + 1)
        after, beyond = self._at(i + 2), self._at(i + 3)
        if issubclass(type(parent), dict):
            return self._slot_in_dict(i, child, parent, after, beyond)
        if issubclass(type(parent), types.CellType):
            if type(after) is tuple and type(beyond) is types.FunctionType and beyond.__closure__ is after:
                names = beyond.__code__.co_freevars
                return "closure variable", _quoted(names, [cell is parent for cell in after]), i + 3
            return "closure variable", "", i + 2 if after is not None else i + 1
        if type(parent) is tuple and type(after) is types.FunctionType and after.__defaults__ is parent:
            code = after.__code__
            names = code.co_varnames[code.co_argcount - len(parent) : code.co_argcount]
            return "default argument", _quoted(names, [value is child for value in parent]), i + 2
        if issubclass(type(parent), _SEQUENCES) or _is_array(parent):
            return "item", "", i + 1
        if type(child) in _FRAMES and (type(parent) in _FRAMES or issubclass(type(parent), BaseException)):
            return self._slot_of_frame(i)
        if type(parent) is types.FrameType:
            return "local", _local_name(parent, child), i + 1
        if type(parent) in _SUSPENDED:
            frame = getattr(parent, f"{_CODE_OF[type(parent)]}_frame")
            return "local", _local_name(frame, child), i + 1
        if type(parent) is _LRU:
            return _place_in_cache(parent, child), "", i + 1
        if type(parent).__name__.startswith("hamt"):  # how a contextvars.Context keeps its values
            j = i + 1
            while j + 1 < len(self.path) and type(self.path[j]).__name__.startswith("hamt"):
                j += 1
            return "context variable", _variable_name(self.path[j], child), j
        if type(parent) in _BOUND:
            return "self", "", i + 1
        return "attribute", _attribute_name(parent, child), i + 1

    def _slot_in_dict(self, i: int, child: Any, parent: Any, after: Any, beyond: Any) -> tuple[str, str, int]:
        key = _key(parent, child)
        if _module_of(parent) is not None:
            return "global", key, i + 1
        if type(after) is types.ModuleType:
            return "global", key, i + 2
        if type(after) is _LRU:
            return _place_in_cache(after, child), "", i + 2
        if issubclass(type(after), type) and type(parent) is dict and parent.keys() == after.__dict__.keys():
            return "class attribute", key, i + 2
        if type(after) is types.FunctionType:
            return ("default argument" if after.__kwdefaults__ is parent else "attribute"), key, i + 2
        if _namespace(after) is parent:
            return "attribute", key, i + 2
        if type(parent) is dict and type(after) is dict and issubclass(type(beyond), local):
            return "attribute", key, i + 3
        if any(parent is hooks for hooks in _gradient_hooks(after)):
            return "gradient hook", "", i + 2
        # A dictionary of torch.nn.Module: in the module itself, or in the module's own namespace.
        for owner, at in ((after, i + 2), (beyond, i + 3)):
            if issubclass(type(owner), torch.nn.Module):
                kind = next((kind for name, kind in _IN_MODULE.items() if _namespace(owner).get(name) is parent), None)
                if kind is not None:
                    return kind, "" if "hook" in kind else key, at
        return "key", key, i + 1

    def _slot_of_frame(self, i: int) -> tuple[str, str, int]:
        """A frame is kept by those it called, by tracebacks, and so at last by an exception; or by who asked for it."""
        j = i + 1
        while type(self._at(j)) in _FRAMES and j + 1 < len(self.path):
            j += 1
        if type(self.path[j]) in _FRAMES or issubclass(type(self.path[j]), BaseException):
            return "traceback", "", j
        return self._slot(j - 1)


def _called(noun: str, name: str, place: str) -> str:
    """ "list `losses` (40 items), attribute of ...": the name stands before the size."""
    if name and not noun.endswith(name.strip("`")):  # a function, mostly, called what its place is called
        head, bracket, size = noun.partition(" (")
        noun = f"{head} {name}{bracket}{size}"
    return f"{noun}, {place}"


def _place_in_cache(cache: Any, child: Any) -> str:
    """Whether an lru_cache keeps `child` for what it was called with or for what came of it."""
    entries = [found for found in gc.get_referents(cache) if type(found) is dict]
    return "argument" if any(key is child for found in entries for key in found) else "result"


def _variable_name(context: Any, child: Any) -> str:
    """The context variable that has `child` for its value."""
    variables = list(contextvars.Context.items(context)) if type(context) is contextvars.Context else []
    return next((f"`{variable.name}`" for variable, value in variables if value is child), "")


def _is_array(found: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(found) is numpy.ndarray


def _gradient_hooks(found: Any) -> tuple[Any, ...]:
    """The dictionaries of a tensor's hooks."""
    if not issubclass(type(found), torch.Tensor):
        return ()
    return tuple(getattr(found, name, None) for name in ("_backward_hooks", "_post_accumulate_grad_hooks"))


def _quoted(names: Sequence[str], hits: Collection[bool]) -> str:
    return next((f"`{name}`" for name, hit in zip(names, hits, strict=False) if hit), "")


def _noun(found: Any) -> str:
    kind = type(found)
    if (module := _module_of(found)) is not None:
        return f"module {module}"
    if kind is types.ModuleType:
        return f"module {found.__name__}"
    if issubclass(kind, type):
        return f"class {found.__module__}.{short_name(found.__qualname__)}"
    if issubclass(kind, dict | list | tuple | set | frozenset | deque):
        length = _len(found)
        return f"{kind.__name__} ({length:,} item{'s' * (length != 1)})"
    if kind is types.FunctionType:
        return f"function {short_name(found.__qualname__)}"
    if kind in _BOUND:
        function = found.__func__ if kind is types.MethodType else found
        return f"bound method {short_name(getattr(function, '__qualname__', '?'))}"
    if kind is _LRU:
        return f"lru_cache of {short_name(found.__wrapped__.__qualname__)}"
    if kind in _SUSPENDED:
        word = {"gi": "generator", "cr": "coroutine", "ag": "async generator"}[_CODE_OF[kind]]
        return f"suspended {word} {short_name(found.__qualname__)}"
    if kind is types.FrameType:
        return _place(found)
    if issubclass(kind, local):
        return "thread-local"
    if _is_array(found):
        return f"NumPy array ({found.size:,} item{'s' * (found.size != 1)})"
    if issubclass(kind, BaseException):
        return f"exception {short_name(kind.__qualname__)}"
    return short_name(kind.__qualname__)


def _len(found: Any) -> int:
    for base in (OrderedDict, dict, list, tuple, set, frozenset, deque):
        if issubclass(type(found), base):
            return int(base.__len__(found))
    return 0


def _namespace(found: Any) -> Any:
    try:
        return object.__getattribute__(found, "__dict__")
    except AttributeError:
        return {}


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
    namespace = _namespace(owner)
    if type(namespace) is dict:
        for name, value in namespace.items():
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
    items = _locals_of(frame) if frame is not None else []
    return next((f"`{name}`" for name, value in items if value is child), "")
