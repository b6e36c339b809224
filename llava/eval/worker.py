"""The process of a rank that answers: forked off by its supervisor, which reads its report and sees how it ends."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from llava.eval.rank_store import RankStore
from llava.eval.ranks import Rank, RankReport, ReportWriter, line, read_report
from vram.exit_codes import INTERRUPTED, OUT_OF_MEMORY

POLL_SECONDS = 0.2
ENDING_SECONDS = 30.0  # for a worker that has finished its report, or a rank that should read rank 0's result
_TIMEOUT_SECONDS = 600.0  # until the header has the command line's


def fork_worker(rank: Rank, work: Callable[[ReportWriter], int]) -> tuple[int, int]:
    """Run `work` in a child process, before torch is imported: (its process id, the file descriptor of its report).

    In the child this raises SystemExit.
    """
    reading, writing = os.pipe()
    alive, living = os.pipe()  # `living` closes with the supervisor, even one that is killed
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        os.close(writing)
        os.close(alive)
        return process, reading
    os.close(reading)
    os.close(living)
    os.setpgrp()  # torchrun signals the group: how to react is the supervisor's decision
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with, args=(alive,), daemon=True).start()
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        code = work(ReportWriter(rank, stream))
    raise SystemExit(code)


def _end_with(alive: int) -> None:
    os.read(alive, 1)
    os._exit(INTERRUPTED)


class Worker:
    """A rank's worker, seen by its supervisor. The report is passed on to the store, and kept beside the output."""

    def __init__(self, prog: str, rank: Rank, process: int, pipe: int, store: RankStore) -> None:
        self._prog, self._rank, self._process, self._pipe, self._store = prog, rank, process, pipe, store
        self._text = ""  # whole lines of its report
        self._rest = b""
        self._header: dict[str, Any] | None = None
        self._file: TextIO | None = None
        self._last_read = time.monotonic()
        self._is_interrupted = False
        self._killed = ""  # why it was killed

    @property
    def report(self) -> RankReport:
        """The report so far."""
        return read_report(self._text)

    @property
    def timeout(self) -> float:
        """Seconds without a sign of life after which a rank is given up."""
        return _TIMEOUT_SECONDS if self._header is None else float(self._header["timeout"])

    @property
    def kept_in(self) -> str:
        """Name of the file that keeps the report; "" where there is none yet."""
        return "" if self._file is None else self._file.name

    def listen(self) -> bool:
        """Read the report for a moment; False once it can't go on. A worker that sends nothing for long is killed."""
        if time.monotonic() - self._last_read > self.timeout:
            self.kill(f"stopped: nothing heard of it for {self.timeout:g} s")
        if not select.select([self._pipe], [], [], POLL_SECONDS)[0]:
            return True
        read = os.read(self._pipe, 1 << 16)
        if not read:
            return False
        self._last_read = time.monotonic()
        lines, newline, self._rest = (self._rest + read).rpartition(b"\n")
        if newline:
            self._add((lines + newline).decode())
        return True

    def interrupt(self) -> None:
        """Ask it, once, to stop."""
        if not self._is_interrupted:
            self._is_interrupted = True
            os.kill(self._process, signal.SIGINT)

    def kill(self, why: str) -> None:
        """End it; `why` becomes the reason in the report."""
        if not self._killed:
            self._killed = why
            os.kill(self._process, signal.SIGKILL)

    def finish(self) -> None:
        """Wait for its end, and see that its report has one."""
        status = self._reap()
        if self.report.code is None:
            code = INTERRUPTED if self._is_interrupted else OUT_OF_MEMORY
            self._add(line(code=code, message=self._killed or _how_it_ended(status)))
        self._store.end()

    def close(self, *, keep: bool) -> None:
        """Close the file that keeps the report, and remove it unless `keep`."""
        if self._file is not None:
            self._file.close()
            if not keep and self._header is not None:
                self._rank.file(Path(self._header["output"])).unlink(missing_ok=True)

    def _add(self, text: str) -> None:
        self._text += text
        self._store.append(text)
        if self._header is None:
            self._header = self.report.header
            text = self._text
        if self._header is None:
            return
        try:
            if self._file is None:
                self._file = self._rank.file(Path(self._header["output"])).open("w", encoding="utf-8")
            self._file.write(text)
            self._file.flush()
        except OSError as error:  # the store has it
            print(f"{self._prog}: {self._rank}: its answers can't be kept on the disk: {error}", file=sys.stderr)
            self._file = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123

    def _reap(self) -> int:
        """Wait for its end; its wait status. A worker that has finished its report and does not end is killed."""
        until = time.monotonic() + ENDING_SECONDS
        while True:
            process, status = os.waitpid(self._process, os.WNOHANG)
            if process:
                return status
            if time.monotonic() > until:
                self.kill("stopped: it did not end")
            self._store.beat()
            time.sleep(POLL_SECONDS / 4)


def _how_it_ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return f"killed by signal {number} ({signal.Signals(number).name})"
    return f"ended with code {os.WEXITSTATUS(status)}, without a word"
