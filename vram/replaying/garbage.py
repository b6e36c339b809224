"""Bytes that only Python's collector gives back: cycles that a sample leaves behind, and what they are made of."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import FrameType, FunctionType
from typing import Any, Self

from vram.frames import Frame, short_name

_MOST_KINDS = 2  # of owners, and of tensors
_PLAIN = ("builtins", "types", "functools", "collections", "weakref")  # modules of classes that tell nobody anything


class Garbage:
    """Counts the bytes that only the collector frees: between samples, and automatically while one runs.

    When Python collects by itself depends on whatever was allocated before, by a meter too: what is left over at the
    end of a sample differs from run to run, and all that its cycles came to does not. A step's own calls of the
    collector are not counted. Used as a context manager around a replay.
    """

    def __init__(self, live_bytes: Callable[[], int]) -> None:
        """`live_bytes` reads what is alive now; cheap, as it is read between every two samples."""
        self._live_bytes = live_bytes
        self._before: int | None = None  # alive when the automatic collection that runs began
        self._automatic_bytes = 0
        self._held = self._seen = False
        self.kinds: tuple[str, ...] = ()  # of the first garbage that was left over after some was seen

    def __enter__(self) -> Self:
        gc.callbacks.append(self._collects)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._release()
        gc.callbacks.remove(self._collects)

    def hold(self) -> None:
        """Let nothing be collected automatically until `collect`: what is left over can be named there."""
        self._held = gc.isenabled()
        gc.disable()

    def _release(self) -> None:
        if self._held:
            gc.enable()
        self._held = False

    def collect(self) -> int:
        """Collect; the bytes that collections have given back since this was last called."""
        before = self._live_bytes()
        found, kinds = _collect_and_name() if self._seen and not self.kinds else (gc.collect(), ())
        # Where nothing was found, another thread may have let go of something meanwhile.
        left_bytes = max(0, before - self._live_bytes()) if found else 0
        if left_bytes:
            self.kinds = self.kinds or kinds
        self._release()
        n_bytes, self._automatic_bytes = left_bytes + self._automatic_bytes, 0
        self._seen = self._seen or n_bytes > 0
        return n_bytes

    def _collects(self, phase: str, info: Mapping[str, int]) -> None:
        """A collection begins or ends, in any thread."""
        if phase == "start":
            self._before = self._live_bytes() if is_automatic(info["generation"]) else None
        elif self._before is not None:
            if info["collected"]:
                self._automatic_bytes += max(0, self._before - self._live_bytes())
            self._before = None


def is_automatic(generation: int) -> bool:
    """Whether the collection that begins is one of Python's own, and not a call of `gc.collect`."""
    return gc.isenabled() and gc.get_count()[generation] > gc.get_threshold()[generation] > 0


def _collect_and_name() -> tuple[int, tuple[str, ...]]:
    """Collect, and say what was collected. Finalizers run and weak references end once, as ever."""
    flags, kept = gc.get_debug(), len(gc.garbage)
    gc.set_debug(flags | gc.DEBUG_SAVEALL)
    try:
        found = gc.collect()
    finally:
        gc.set_debug(flags)
    kinds = _kinds(gc.garbage[kept:])
    del gc.garbage[kept:]
    gc.collect()  # now they are freed
    return found, kinds


def _kinds(objects: Sequence[object]) -> tuple[str, ...]:
    """ "Session", "function retry", "float32 [20, 64]": tensors last, before them what leads to them."""
    torch = sys.modules["torch"]
    tensors = [each for each in objects if issubclass(type(each), torch.Tensor)]
    holders = [each for each in _leading_to(tensors, objects) if not issubclass(type(each), torch.Tensor)]
    named = Counter(filter(None, map(_holder, holders))) or Counter(type(each).__qualname__ for each in holders)
    return tuple(
        name for counted in (named, Counter(map(_tensor, tensors))) for name, _ in counted.most_common(_MOST_KINDS)
    )


def _leading_to(ends: Iterable[object], objects: Sequence[object]) -> list[object]:
    """Those of `objects` that refer to one of `ends`, over others of them or not."""
    known = {id(each): each for each in objects}
    referrers: dict[int, list[int]] = {}
    for each in objects:
        for referent in gc.get_referents(each):
            referrers.setdefault(id(referent), []).append(id(each))
    leading = dict.fromkeys(map(id, ends))
    queue = list(leading)
    for one in queue:
        new = [each for each in referrers.get(one, ()) if each not in leading]
        leading.update(dict.fromkeys(new))
        queue += new
    return [known[one] for one in leading if one in known]


def _holder(each: object) -> str:
    """The name of a class, function or frame of a project's; "" for Python's own."""
    kind = type(each)
    if isinstance(each, FunctionType):
        return f"function {short_name(each.__qualname__)}"
    if isinstance(each, FrameType):
        return f"frame of {Frame(each.f_code.co_filename, each.f_lineno, short_name(each.f_code.co_qualname))}"
    return "" if kind.__module__ in _PLAIN else short_name(kind.__qualname__)


def _tensor(tensor: Any) -> str:
    with suppress(Exception):  # a subclass answers by code of its own
        return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    return type(tensor).__qualname__
