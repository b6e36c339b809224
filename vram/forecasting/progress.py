"""A sign of life of forecasts that take long."""

from __future__ import annotations

import os
import sys


class Progress:
    """A line on a terminal's standard error that says what runs; nothing in CI, nor where that goes to a file."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._live = sys.stderr.isatty() and not os.environ.get("CI")
        self._columns = 0

    def __call__(self, text: str = "") -> None:
        """Show what runs now; without a text take the line away."""
        if not self._live or not (text or self._columns):
            return
        line = f"{self._program}: {text} ..." if text else ""
        sys.stderr.write("\r" + line.ljust(self._columns) + ("" if text else "\r"))
        sys.stderr.flush()
        self._columns = len(line)
