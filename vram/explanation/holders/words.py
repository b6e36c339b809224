"""A chain of holders in words: the kind of each object, and the place where it sits in the next."""

from __future__ import annotations

import contextvars
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from vram.explanation.holders.nouns import noun_of
from vram.explanation.holders.places import Place, place_in
from vram.explanation.holders.search import Path

_LONGEST_WORDS = 300


def in_words(path: Path, named: Mapping[int, str], locals_: Mapping[int, tuple[str, str]], *, end: str = "") -> str:
    """The chain in words: "list `losses` (40 items), attribute of Trainer `TRAINER`, global of module train".

    `end` is what keeps the last of a path that is not named. A long chain keeps both ends, in whole phrases.
    """
    pieces = _Words(path, named, locals_, end).pieces()
    if sum(map(len, pieces)) <= _LONGEST_WORDS:
        return "".join(pieces)
    # The name, and the two places nearest to it: there it is mended.
    last = max(3, _fitting(pieces[::-1], _LONGEST_WORDS // 2))
    left = _LONGEST_WORDS - sum(map(len, pieces[-last:]))
    first = max(1, _fitting(pieces[:-last], left))
    return "".join(pieces) if first + last >= len(pieces) else "".join([*pieces[:first], "... ", *pieces[-last:]])


def _fitting(pieces: Sequence[str], most: int) -> int:
    """How many of the first `pieces` have at most `most` characters together."""
    ends = itertools.accumulate(map(len, pieces))
    return sum(end <= most for end in ends)


class _Words:
    """Words of one path, from the target outward; plumbing between two steps is skipped."""

    def __init__(self, path: Path, named: Mapping[int, str], locals_: Mapping[int, tuple[str, str]], end: str) -> None:
        self.path, self.named, self.locals = path.objects, named, locals_
        self.end = end or (" that native code keeps" if path.whole else " and so on")
        self.is_named = path.named
        # The places that are named, and how each sits in the next.
        self.at, self.places = [0], list[Place]()
        while self.at[-1] < len(self.path) - 1:
            self.places.append(place_in(self.path, self.at[-1]))
            self.at.append(self.places[-1][2])
        self.steps = [(type(self.path[i]), *place[:2]) for i, place in zip(self.at, self.places, strict=False)]

    def pieces(self) -> list[str]:
        """Phrases that are the whole when joined, one for each place."""
        kind, name, _ = self.places[0]
        pieces = [""] if kind == "item" else [f"{kind} {name} of " if name else f"{kind} of "]
        step = 1
        while step < len(self.places) and id(self.path[self.at[step]]) not in self.named:
            links = self._links(step)
            noun = noun_of(self.path[self.at[step]])
            noun = f"{noun} ({links:,} link{'s' * (links != 1)} on)" if links else noun
            step += links
            kind, name, _ = self.places[step]
            pieces.append(_placed(noun, kind, name))
            step += 1
        last = self.path[self.at[step]]
        return [*pieces, self.named.get(id(last)) or self._end(last)]

    def _end(self, obj: Any) -> str:
        noun = noun_of(obj)
        if id(obj) in self.locals:
            name, where = self.locals[id(obj)]
            return _called(noun, f"`{name}`", f"local of {where}")
        if type(obj) is contextvars.Context and not self.is_named:
            return "a thread's context"
        return noun if self.is_named else f"{noun}{self.end}"

    def _links(self, step: int) -> int:
        """How many steps on from `step` each is like the one before it.

        Or like the second or third before it, if there are three such rounds: a partial of a partial's method.
        """
        for period, least in ((1, 1), (2, 4), (3, 6)):
            at = step
            while at + period < len(self.steps) and self.steps[at + period] == self.steps[at]:
                at += 1
            links = (at - step) // period * period
            if links >= least:
                return links
        return 0


def _placed(noun: str, kind: str, name: str) -> str:
    """A phrase up to the next noun: "list `losses` (40 items), attribute of "."""
    if kind == "item":
        return f"{noun} in "
    if kind == "traceback":
        return f"{noun}, in the traceback of "
    if kind == "key":
        return f"{noun} at key {name} of "
    return _called(noun, name, f"{kind} of ")


def _called(noun: str, name: str, place: str) -> str:
    """ "list `losses` (40 items), attribute of ...": the name stands before the size."""
    if name and not noun.endswith(name.strip("`")):  # a function, mostly, called what its place is called
        head, bracket, size = noun.partition(" (")
        noun = f"{head} {name}{bracket}{size}"
    return f"{noun}, {place}"
