"""The shortest chain of Python objects from a target to a name that a user would recognise.

Found through the garbage collector's referrers, nearest name first. A search keeps nothing and calls no code of the
objects it looks at.
"""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

from vram.explanation.holders.objects import (
    is_array,
    is_name,
    module_of,
    referents,
    running_frames,
    running_locals,
    untracked,
)

DEEPEST = 100  # links of a list of one's own; dead ends end by themselves
WIDEST = 20_000  # objects in one level: past this a chain says nothing any more


def path_to_name(targets: Sequence[object], named: Mapping[int, str]) -> list[Any]:
    """The shortest chain of referrers from one of `targets` to a module, class, running local or `named` object.

    Without such an end, the longest chain there is. The first of the list is the target.
    """
    locals_ = running_locals()
    path = _search(targets, named, locals_, ())
    if not is_name(path[-1], named, locals_) and (unseen := [*_tasks(), *_untracked_holders(targets)]):
        del path  # ours would be taken for a holder
        path = _search(targets, named, locals_, unseen)
    return path


def _search(
    targets: Sequence[object], named: Mapping[int, str], locals_: Mapping[int, Any], unseen: Sequence[Any]
) -> list[Any]:
    """See `path_to_name`. Those `unseen` by the collector are looked into too."""
    child_of: dict[int, Any] = {}
    level: list[Any] = list(targets)
    seen = {id(target) for target in targets}
    own = {id(targets), id(child_of), id(seen), id(named), id(unseen)}
    last = level[0]
    for _ in range(DEEPEST):
        roots = [obj for obj in level if is_name(obj, named, locals_)]
        if roots:
            return _chain(min(roots, key=lambda root: _rank(root, named)), child_of)
        own.add(id(level))
        following = _referrers(level, unseen, seen, own, child_of)
        if not following or len(following) > WIDEST:
            break
        level = following
        last = level[0]
    return _chain(last, child_of)


def _referrers(
    level: list[Any], unseen: Sequence[Any], seen: set[int], own: set[int], child_of: dict[int, Any]
) -> list[Any]:
    """Objects that refer to one of `level`, entered into `child_of` with it; neither those `seen` nor our `own`."""
    running = running_frames()
    ids = {id(obj) for obj in level}
    following: list[Any] = []
    own.add(id(following))
    mark = object()  # the last argument below: in Python 3.13 the tuple of arguments is among its own answers
    for referrer in (*gc.get_referrers(*level, mark), *unseen):
        if id(referrer) in seen or id(referrer) in own or id(referrer) in running:
            continue
        if type(referrer) is tuple and referrer and referrer[-1] is mark:
            continue
        child = next((obj for obj in referents([referrer]) if id(obj) in ids), None)
        if child is None:
            continue
        seen.add(id(referrer))
        child_of[id(referrer)] = child
        following.append(referrer)
    return following


def _chain(root: Any, child_of: Mapping[int, Any]) -> list[Any]:
    path = [root]
    while id(path[-1]) in child_of:
        path.append(child_of[id(path[-1])])
    return path[::-1]


def _rank(root: Any, named: Mapping[int, str]) -> int:
    """Rank of names equally near: a module's or a class's is the one to mend; a local or the step's own says least."""
    if module_of(root) is not None:
        return 0
    return 1 if issubclass(type(root), type | types.ModuleType) else 3 if id(root) in named else 2


def _tasks() -> list[Any]:
    """All tasks of asyncio: as a referrer of its result, CPython 3.11's collector does not name a task."""
    asyncio = sys.modules.get("asyncio")
    task = None if asyncio is None else asyncio.Task
    return [obj for obj in gc.get_objects() if type(obj) is task]


def _untracked_holders(targets: Sequence[object]) -> list[Any]:
    """NumPy arrays, which the collector does not know, and the dictionaries and tuples that hold them and plain values.

    Empty where none can hold `targets`: all arrays are of numbers, and so is no target.
    """
    loose = untracked()
    arrays = {id(obj): obj for obj in loose if is_array(obj)}
    if not any(array.dtype == object for array in arrays.values()) and not any(map(is_array, targets)):
        return []
    keeping: dict[int, Any] = {}
    while arrays:
        keeping |= arrays
        holding = ((obj, referents([obj])) for obj in loose if id(obj) not in keeping)
        arrays = {id(obj): obj for obj, parts in holding if any(id(each) in keeping for each in parts)}
    return list(keeping.values())
