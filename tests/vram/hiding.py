"""Objects out of the sight of Python's collector, as `gc.freeze` has them, and not counted as frozen: to a test the
process is a small one in which nobody has frozen anything, though half a million objects were imported.

CPython keeps frozen objects in a list that its collector does not look at. All of that list is moved to one of ours, by
the links at the head of each object; an object that ends leaves our list as it would leave theirs.
"""

from __future__ import annotations

import ctypes
import gc
import sysconfig
from functools import cache

_FLAGS = 3  # the lowest bits of a link are the collector's notes on its object


class _Links(ctypes.Structure):
    _fields_ = (("next", ctypes.c_size_t), ("prev", ctypes.c_size_t))


_HEAD_BYTES = ctypes.sizeof(_Links)


def hide() -> None:
    """Hide what is there now, what was hidden by `gc.freeze` too.

    Where this Python keeps frozen objects otherwise nothing is hidden or frozen, and tests take longer.
    """
    if (frozen := _frozen()) is None:
        gc.unfreeze()
    else:
        gc.freeze()
        _move(frozen, _hidden())


def show() -> None:
    """Show all that is hidden or frozen."""
    if (frozen := _frozen()) is not None:
        _move(_hidden(), frozen)
    gc.unfreeze()


@cache
def _hidden() -> int:
    """The address of our list: memory that is never given back, as objects may end after everything else."""
    allocate = ctypes.pythonapi.PyMem_RawMalloc
    allocate.restype, allocate.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    address = int(allocate(_HEAD_BYTES))
    links = _Links.from_address(address)
    links.next = links.prev = address
    return address


@cache
def _frozen() -> int | None:
    """The address of the collector's list of frozen objects: what is frozen last is its end. None where this Python
    keeps them otherwise."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None  # objects have no links there
    enabled = gc.isenabled()
    gc.disable()
    try:
        gc.freeze()
        first: list[object] = []
        gc.freeze()
        second: list[object] = []
        gc.freeze()
    finally:
        if enabled:
            gc.enable()
    before, last = id(first) - _HEAD_BYTES, id(second) - _HEAD_BYTES
    address = _Links.from_address(last).next & ~_FLAGS
    around = (_Links.from_address(before).next, _Links.from_address(last).prev, _Links.from_address(address).prev)
    return address if [each & ~_FLAGS for each in around] == [last, before, last] else None


def _move(source: int, target: int) -> None:
    """Append all objects of the list at `source` to that at `target`."""
    first, last = _follow(source, "next"), _follow(source, "prev")
    if first == source:
        return
    end = _follow(target, "prev")
    for one, other in ((end, first), (last, target), (source, source)):
        _link(one, "next", other)
        _link(other, "prev", one)


def _follow(address: int, link: str) -> int:
    return int(getattr(_Links.from_address(address), link)) & ~_FLAGS


def _link(address: int, link: str, to: int) -> None:
    links = _Links.from_address(address)
    setattr(links, link, to | getattr(links, link) & _FLAGS)
