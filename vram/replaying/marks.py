"""Named points inside a sample, where a reading is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# A module variable, not a context variable: a mark set in a thread the step started must count too.
_listener: Callable[[str], None] | None = None


def mark(name: str) -> None:
    """Take a reading here, stored in `Recording.marks[name]`. Does nothing while no replay is recording."""
    if _listener is not None:
        _listener(name)


@contextmanager
def listening(listener: Callable[[str], None]) -> Iterator[None]:
    """Hand every mark's name to `listener` inside the block."""
    global _listener
    outer, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = outer
