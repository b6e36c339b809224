"""Frames of tests that failed: emptied when the next test begins, as the tensors in them count in its figures.

pytest has rendered its report by then, with the locals for --showlocals, and `--pdb` has had its turn. Who keeps the
exception (pytest-rerunfailures keeps all, pytest those of a session's fixture) still has its text, lines and chain.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest

_SUSPENDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Failures:
    """The exceptions of one test, or of one try of it, until the next one begins."""

    def __init__(self) -> None:
        self._errors: list[tuple[BaseException, bool]] = []

    def note(self, call: pytest.CallInfo[Any]) -> None:
        """A phase of a test ended. Skips and expected failures raise too."""
        if call.excinfo is not None:
            self._errors.append((call.excinfo.value, call.when == "setup"))

    def clear(self) -> None:
        """Empty all frames that have ended, those of causes, contexts and members of groups too.

        Left alone: frames that are hidden from tracebacks by a variable, where a fixture failed: pytest raises its
        exception again in each test that needs the fixture, and would show them there.
        """
        errors, self._errors = self._errors, []
        seen: set[int] = set()
        for error, of_setup in errors:
            for frame in _frames(error, seen):
                if not _suspended(frame) and not (of_setup and "__tracebackhide__" in frame.f_code.co_varnames):
                    with suppress(RuntimeError):  # it runs, or, from Python 3.13 on, is suspended
                        frame.clear()
                        frame.f_locals  # noqa: B018 - up to Python 3.12 reading it empties the copy that pytest has read


def _frames(error: BaseException, seen: set[int]) -> Iterator[FrameType]:
    """Frames in the tracebacks of an exception and of all that belong to it, and their callers, which they keep.

    Exceptions and frames in `seen` are passed over, and added there.
    """
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        trace = one.__traceback__
        while trace is not None:
            frame: FrameType | None = trace.tb_frame
            while frame is not None and id(frame) not in seen:
                seen.add(id(frame))
                yield frame
                frame = frame.f_back
            trace = trace.tb_next
        waiting += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def _suspended(frame: FrameType) -> bool:
    """Whether a generator or coroutine may go on here, as a fixture does after its `yield`: clearing would end it."""
    code = frame.f_code
    return bool(code.co_flags & _SUSPENDS) and dis.opname[code.co_code[frame.f_lasti]] == "YIELD_VALUE"
