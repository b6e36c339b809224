"""Failures of an explanation: a line of text, for a verdict stands whatever happens to its explanation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
_LONGEST = 200


def in_a_line(error: BaseException) -> str:
    """ "KeyError: 3": its kind and the first line of its message, which a user's class may fail to give."""
    kind = type.__dict__["__name__"].__get__(type(error))
    try:
        message = str(error).strip().partition("\n")[0]
    except Exception:
        message = "(an error without a readable message)"
    line = f"{kind}: {message}" if message else str(kind)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def attempt(work: Callable[[], _T]) -> tuple[_T | None, str]:
    """The result of `work` and ""; None and the error in a line where it raises anything but KeyboardInterrupt.

    A rerun is code of the user's, and a search walks over objects that other threads change: both may raise anything.
    """
    try:
        return work(), ""
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit and pytest's own outcomes are no Exceptions
        return None, in_a_line(error)
