"""Finds results that are alive while the statement that replaces them computes the next."""

from __future__ import annotations

import ctypes
import dis
import sys
from collections import Counter
from collections.abc import Iterator
from types import CodeType
from typing import Any

from vram.explanation.suggestions.evidence import LEAST_SHARE, Evidence, Found
from vram.explanation.suggestions.uses import Release
from vram.torch_hooks.dispatch import DispatchMode

_REFERENCES = 3  # to a frame's dictionary of locals: the frame's, a variable's, and that of the count itself
_MOST_RUNS = 2  # of the sample, to see whether an assignment that let go of most is the one


def previous_output(evidence: Evidence) -> Iterator[Found]:
    """Storages alive at the peak that an assignment to a local variable let go of later, without reading them since;
    and the peak of the same sample if the variable is None while the statement runs."""
    sizes: Counter[Release] = Counter()
    for key, one in evidence.alive.items():
        use = evidence.uses[key]
        if use.release is not None and use.last_read < evidence.curve.peak_at and evidence.stays_inside(key):
            sizes[use.release] += one.n_bytes
    for release, n_bytes in sizes.most_common(_MOST_RUNS):
        name = release.local
        small = n_bytes * LEAST_SHARE < evidence.own_bytes
        if small or not name or _mentions(release.code, release.line, name):
            continue
        peak_bytes = evidence.peak_within(_Emptied(release.code, release.line, name))
        if peak_bytes is not None:
            text = (
                f"set `{name} = None` before {release.frame} computes the next: until then the one before is alive, "
                "and nothing reads it"
            )
            yield Found(text, saves_bytes=evidence.curve.peak_bytes - peak_bytes)


def _mentions(code: CodeType, line: int, name: str) -> bool:
    """Whether the statement that begins on a line reads the name that it assigns to."""
    places = [
        (each, each.positions.lineno or 0, each.positions.end_lineno or 0)
        for each in dis.get_instructions(code)
        if each.positions is not None
    ]
    last = max((end for _, begin, end in places if begin == line), default=line)
    return any(
        each.opname.startswith("LOAD_") and each.argval == name and line <= begin <= last for each, begin, _ in places
    )


class _Emptied(DispatchMode):
    """Inside, a local variable is None while the statement on its line runs operations."""

    def __init__(self, code: CodeType, line: int, name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._code, self._line, self._name = code, line, name

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        frame = sys._getframe(1)
        while frame is not None and not (frame.f_code is self._code and frame.f_lineno == self._line):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is not None:
            _set_none(frame, self._name)
        return func(*args, **(kwargs or {}))


def _set_none(frame: Any, name: str) -> None:
    variables = frame.f_locals
    if not isinstance(variables, dict):  # from Python 3.13 on the variables themselves
        if variables.get(name) is not None:
            variables[name] = None
        return
    if sys.getrefcount(variables) > _REFERENCES:  # the step has called locals(), and goes on with this dictionary
        return
    if variables.get(name) is not None:
        variables[name] = None
        # It writes all variables, of which no other can have changed since they were read.
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
    variables.clear()  # a copy, which would keep all of them alive
