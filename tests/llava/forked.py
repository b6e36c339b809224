"""Programs as processes of their own, forked from a server that has imported the model's library: 5 s less for each."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.source import PYTHON_PATH

# A request is [module, arguments, folder, encoding of stdout], with stdout and stderr themselves. The answers are the
# process's id, and at its end its exit code. The module is run as `python -m` runs it; torchrun forks its ranks too.
_SERVER = """
import gc, json, os, runpy, signal, socket, subprocess, sys, traceback, warnings
gc.disable()
import llava.eval.loop
import torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler as starting

class Forked(subprocess.Popen):
    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *rest):
        self.pid, self._child_created = os.fork(), True
        if self.pid:
            return
        code = 1
        try:
            os.setsid()
            os.environ.clear()
            os.environ.update(env)
            options = [*args[1:]]
            while options[0] == "-u":
                del options[0]
            is_module = options[0] == "-m"
            sys.argv[:] = options[is_module:]
            (runpy.run_module if is_module else runpy.run_path)(sys.argv[0], run_name="__main__")
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # the rest of the stack is torchrun's

def run(module, argv, folder, encoding):
    os.chdir(folder)
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)
    sys.argv[1:] = argv
    # Where these tests run in a shell's background, SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if module == "torch.distributed.run":
        warnings.simplefilter("default")  # torchrun's own are not ours
        starting.Popen = Forked
    runpy.run_module(module, run_name="__main__")

gc.freeze()
gc.enable()
connection = socket.socket(fileno=int(sys.argv[1]))
while True:
    request, streams, _, _ = socket.recv_fds(connection, 65536, 2)
    if not request:
        os._exit(0)
    if process := os.fork():
        for stream in streams:
            os.close(stream)
        connection.sendall(b"%d\\n" % process)
        connection.sendall(b"%d\\n" % os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
        continue
    connection.close()
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
        os.close(stream)
    run(*json.loads(request))
    break
"""


@contextmanager
def serving() -> Iterator[socket.socket]:
    """The connection to a server; warnings are errors in it, and so in the programs."""
    ours, theirs = socket.socketpair()
    ours.settimeout(240)
    environment = os.environ | {"PYTHONPATH": PYTHON_PATH, "PYTHONWARNINGS": "error", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _SERVER, str(theirs.fileno())]
    with subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()]) as process:
        theirs.close()
        yield ours
        ours.shutdown(socket.SHUT_RDWR)  # the server ends then
        ours.close()
        process.wait(timeout=60)


class Forked:
    """A process that the server has forked: `python -m MODULE ARGUMENT...` in `folder`. One at a time."""

    def __init__(
        self,
        server: socket.socket,
        module: str,
        argv: Sequence[str],
        folder: Path,
        *,
        stdout: int,
        stderr: int,
        encoding: str = "utf-8",
    ) -> None:
        request = json.dumps([module, [*argv], str(folder), encoding])
        socket.send_fds(server, [request.encode()], [stdout, stderr])
        self._answers = server.makefile()
        self._code: int | None = None
        self.id = int(self._answers.readline())

    def wait(self) -> int:
        """Its exit code."""
        if self._code is None:
            self._code = int(self._answers.readline())
        return self._code

    def end(self) -> None:
        """Kill it where it still runs: the server waits for it."""
        if self._code is None:
            os.kill(self.id, signal.SIGKILL)
            self.wait()
