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
from pathlib import Path
from types import FrameType

GRACE_SECONDS = 7.0
TERMINAL = 0  # the file descriptor of standard input


class Group:
    """A command and everything it starts. `signals` are those that were passed on to it, first to last."""

    def __init__(self, command: list[str]) -> None:
        self.signals: list[int] = []
        self._leader: int | None = None
        self._deadline = 0.0
        self._terminal = os.isatty(TERMINAL) and os.tcgetpgrp(TERMINAL) == os.getpgrp()
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # which handing the terminal over would send
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # A shell script's background commands ignore SIGINT from their start on.
            if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT:
                signal.signal(number, self._pass_on)
        signal.signal(signal.SIGALRM, self._kill)
        environment = {**os.environ, "VRAM_SUPERVISED": "1"}
        process = subprocess.Popen(command, env=environment, preexec_fn=self._begin)  # noqa: S603
        self._leader = process.pid
        for number in self.signals:
            self._send(number)

    def wait(self) -> int:
        """The command's exit code, or 128 + the number of the signal that ended it."""
        assert self._leader is not None
        status = self._waited(self._leader)
        while os.WIFSTOPPED(status):
            self._stop_too()
            status = self._waited(self._leader)
        if self._terminal:
            os.tcsetpgrp(TERMINAL, os.getpgrp())
        while time.monotonic() < self._deadline and self._send(0):
            time.sleep(0.05)
        if self.signals:
            self._send(signal.SIGKILL)
        return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)

    def _waited(self, pid: int) -> int:
        return os.waitpid(pid, os.WUNTRACED)[1]

    def _begin(self) -> None:
        """In the new process: a group of its own, which gets the keys of the terminal where we had them."""
        os.setpgid(0, 0)
        if self._terminal:
            os.tcsetpgrp(TERMINAL, os.getpgrp())
        for number in (signal.SIGTTOU, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)

    def _stop_too(self) -> None:
        """Ctrl-Z stopped the command: give the terminal back, stop with it, and go on with it."""
        assert self._leader is not None
        if not self._terminal:
            return
        os.tcsetpgrp(TERMINAL, os.getpgrp())
        os.killpg(os.getpgrp(), signal.SIGSTOP)
        if os.tcgetpgrp(TERMINAL) == os.getpgrp():
            os.tcsetpgrp(TERMINAL, self._leader)
        self._send(signal.SIGCONT)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
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
    group = Group(command)
    code = group.wait()
    if not group.signals:
        return code
    first = signal.Signals(group.signals[0])
    if first != signal.SIGINT:  # the suite itself says that it was interrupted
        print(f"ci/{Path(command[1]).name}: ended by {first.name}", flush=True)
    return 128 + first


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
