"""The shortest chain of Python objects from a target to a name that a user would recognise, nearest name first.

A search keeps nothing and calls no code of the objects it looks at.
"""

from __future__ import annotations

import types
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vram.explanation.holders.heap import Heap
from vram.explanation.holders.objects import is_name, module_of

DEEPEST = 2_000  # links of a list of one's own; dead ends end by themselves
MOST_SEARCHED = 100_000  # objects, for each target; names are much nearer


@dataclass(frozen=True, eq=False)
class Path:
    """The target, what refers to it, and so on to the last. `named` says whether that one is a name.

    Where it is none, `whole` says whether everything that refers to the target was looked at.
    """

    objects: list[Any]
    named: bool
    whole: bool


def path_to_name(heap: Heap, targets: Sequence[Any], named: Mapping[int, str]) -> Path:
    """The shortest path from one of `targets` to a module, class, running local or `named` object.

    Without such an end, the longest path there is.
    """
    child_of: dict[int, Any] = {}
    level = list(targets)
    seen = set(map(id, level))
    last = level[0]
    for _ in range(DEEPEST):
        roots = [obj for obj in level if is_name(obj, named, heap.locals)]
        if roots:
            return Path(_chain(min(roots, key=lambda root: _rank(root, named)), child_of), True, True)
        following = []
        for referrer, child in heap.referrers(level):
            if id(referrer) not in seen:
                seen.add(id(referrer))
                child_of[id(referrer)] = child
                following.append(referrer)
        if not following or len(seen) > MOST_SEARCHED:
            break
        level = following
        last = level[0]
    return Path(_chain(last, child_of), False, heap.whole and not following)


def look_ahead(heap: Heap, groups: Sequence[Sequence[Any]], named: Mapping[int, str]) -> None:
    """Have referrers of all `groups` of targets looked up together, level by level, as far as a search would go."""
    levels, seen = [list(group) for group in groups], set[int]()
    while levels and not heap.indexed:
        levels = [level for level in levels if not any(is_name(obj, named, heap.locals) for obj in level)]
        following: dict[int, Any] = {id(obj): obj for level in levels for obj in level}
        referrers = defaultdict[int, list[Any]](list)
        for referrer, child in heap.referrers([obj for key, obj in following.items() if key not in seen]):
            referrers[id(child)].append(referrer)
        seen |= following.keys()
        levels = [[each for obj in level for each in referrers[id(obj)] if id(each) not in seen] for level in levels]
        levels = [level for level in levels if level]


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
