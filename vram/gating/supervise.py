"""Run a command as a process group of its own, and pass signals on to all of it: none of it outlives this process.

`python supervise.py SHELL SCRIPT ARGUMENT...` ends with the script's exit code; after SIGINT with 130 and after SIGTERM
with 143, once the whole group has ended, or was killed GRACE_SECONDS later. A shell cannot do that: it waits for what
it runs before it handles a signal, and ends without it. Needs the standard library alone: set-up comes later.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

GRACE_SECONDS = 7.0
MARK = "VRAM_SUPERVISED"  # in the environment of everything that is supervised
_TERMINAL = 0  # the file descriptor of standard input


def run(command: Sequence[str]) -> tuple[int, list[int]]:
    """Run the command to its end. Returns its exit code, or 128 + the number of the signal that ended it, and the
    signals that came meanwhile, first to last.

    Within a command that is supervised, the signals reach every process of the group anyway, and whoever supervises
    kills what is left of it: this one waits for its own command.
    """
    if os.environ.get(MARK) or not hasattr(os, "killpg"):
        signals: list[int] = []
        with _handling(lambda number, _: signals.append(number)):
            heed = _heed_interrupts if hasattr(os, "killpg") else None
            code = subprocess.run(command, check=False, preexec_fn=heed).returncode  # noqa: S603
        return (128 - code if code < 0 else code), signals
    group = _Group()
    with _handling(group.pass_on):
        return group.run(command), group.signals


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Signals that end a process are the handler's, for as long as the block runs."""
    before = {}
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # A shell script's background commands ignore SIGINT from their start on.
        if number is not None and (signal.getsignal(number) is not signal.SIG_IGN or name == "SIGINT"):
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class _Group:
    """A command and everything it starts. `signals` are those that were passed on to it, first to last."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        self._leader: int | None = None
        self._deadline = 0.0
        self._terminal = os.isatty(_TERMINAL) and os.tcgetpgrp(_TERMINAL) == os.getpgrp()

    def run(self, command: Sequence[str]) -> int:
        """The command's exit code, or 128 + the number of the signal that ended it."""
        # SIGTTOU is what handing the terminal over would send.
        before = [(number, signal.getsignal(number)) for number in (signal.SIGTTOU, signal.SIGALRM)]
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, self._kill)
        try:
            process = subprocess.Popen(command, env={**os.environ, MARK: "1"}, preexec_fn=self._begin)  # noqa: S603
            self._leader = process.pid
            for number in self.signals:
                self._send(number)
            process.returncode = self._waited()  # Popen itself would wait for it again, and complain
            return process.returncode
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, earlier in before:
                signal.signal(number, earlier)

    def _waited(self) -> int:
        assert self._leader is not None
        status = os.waitpid(self._leader, os.WUNTRACED)[1]
        while os.WIFSTOPPED(status):
            self._stop_too()
            status = os.waitpid(self._leader, os.WUNTRACED)[1]
        if self._terminal:
            os.tcsetpgrp(_TERMINAL, os.getpgrp())
        while time.monotonic() < self._deadline and self._send(0):
            time.sleep(0.05)
        if self.signals:
            self._send(signal.SIGKILL)
        return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)

    def _begin(self) -> None:
        """In the new process: a group of its own, which gets the keys of the terminal where we had them."""
        os.setpgid(0, 0)
        if self._terminal:
            os.tcsetpgrp(_TERMINAL, os.getpgrp())
        for number in (signal.SIGTTOU, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)

    def _stop_too(self) -> None:
        """Ctrl-Z stopped the command: give the terminal back, stop with it, and go on with it."""
        assert self._leader is not None
        if not self._terminal:
            return
        os.tcsetpgrp(_TERMINAL, os.getpgrp())
        os.killpg(os.getpgrp(), signal.SIGSTOP)
        if os.tcgetpgrp(_TERMINAL) == os.getpgrp():
            os.tcsetpgrp(_TERMINAL, self._leader)
        self._send(signal.SIGCONT)

    def pass_on(self, number: int, _: FrameType | None) -> None:
        """Send a signal to all of the group; from the first on, the time to end runs."""
        if not self.signals:
            self._deadline = time.monotonic() + GRACE_SECONDS
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)
        self.signals.append(number)
        self._send(number)

    def _kill(self, _number: int, _: FrameType | None) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> bool:
        """Whether there is somebody left in the group."""
        if self._leader is None:
            return False
        try:
            os.killpg(self._leader, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # on macOS, where only zombies are left
            return False
        return True


def main(command: list[str]) -> int:
    """Run the command to its end; the exit code."""
    code, signals = run(command)
    if not signals:
        return code
    first = signal.Signals(signals[0])
    if first != signal.SIGINT:  # the suite itself says that it was interrupted
        print(f"ci/{Path(command[1]).name}: ended by {first.name}", flush=True)
    return 128 + first


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
