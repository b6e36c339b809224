"""A sign of life of replays that take long: on the terminal, past pytest's capture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from vram.escaping import shown
from vram.plugin.options import in_ci

if TYPE_CHECKING:
    from vram.replaying.limits import Progress

_FIRST_SECONDS = 10  # most replays are over by then
_LIVE_SECONDS = 0.5  # between two states of a live line
_PLAIN_SECONDS = 30  # between two lines of a log


_WRITES = ("isatty", "ensure_newline", "rewrite", "write", "write_line", "flush")


class TerminalProgress:
    """One line that changes on a terminal, a line now and then in a log (`CI` is set, or output goes to a file).

    Says nothing under `-q`, and in a worker of pytest-xdist, which has no terminal.
    """

    def __init__(self, config: pytest.Config) -> None:
        # Some reporters of other plugins have less than pytest's own.
        self._reporter = _with(config.pluginmanager.getplugin("terminalreporter"), *_WRITES)
        self._capture = _with(config.pluginmanager.getplugin("capturemanager"), "global_and_fixture_disabled")
        self._writer = config.get_terminal_writer()
        self._quiet = self._reporter is None or config.get_verbosity() < 0
        self._live = not self._quiet and bool(self._reporter.isatty) and not in_ci()
        self._shown = False
        self._next_seconds: float = _FIRST_SECONDS

    def __call__(self, progress: Progress | None) -> None:
        """Show it, where it is time to; None ends a replay."""
        if self._quiet or (progress is not None and progress.seconds < self._next_seconds):
            return
        if progress is not None:
            self._next_seconds = progress.seconds + (_LIVE_SECONDS if self._live else _PLAIN_SECONDS)
            self._write(shown(f"vram: {progress}"))
        else:
            if self._live and self._shown:
                self._write("")
            self._shown, self._next_seconds = False, _FIRST_SECONDS

    def _write(self, line: str) -> None:
        if self._capture is None:
            self._write_out(line)
            return
        with self._capture.global_and_fixture_disabled():
            self._write_out(line)

    def _write_out(self, line: str) -> None:
        reporter = self._reporter
        if self._live:
            if not self._shown:
                reporter.ensure_newline()
            reporter.rewrite(line[: self._writer.fullwidth - 1], erase=True)
            if not line:
                reporter.write("\r")
        else:
            reporter.write_line(line)
        reporter.flush()
        self._shown = True


def _with(plugin: Any, *names: str) -> Any:
    """The plugin, where it has all of these; else None."""
    return plugin if all(hasattr(plugin, name) for name in names) else None
