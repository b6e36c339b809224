"""Commands as a reader types them, without the seconds that importing torch takes: `pytest`, `vram`, `python` and the
programs are forked from one process that has imported it.

`commands(folder)` writes a small script for each of them into a folder, which goes to the front of PATH. A script sends
its arguments, its folder, its environment and its streams to the server and ends with the exit code that comes back.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODULES = {
    "pytest": "pytest",
    "vram": "vram",
    "eval-scivqa": "llava.eval.eval_scivqa",
    "custom-selection-inference": "llava.eval.custom_selection_inference",
    "forecast-memory": "llava.eval.forecast_memory",
}

_CLIENT = """#!{python} -SsE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
request = [{arguments} + sys.argv[1:], os.getcwd(), dict(os.environ)]
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
sys.exit(int(server.recv(16) or b"70"))
"""

_SERVER = """
import atexit, gc, importlib, json, os, runpy, signal, socket, sys, threading
gc.disable()
address, *modules = sys.argv[1:]
for name in modules:
    module = importlib.import_module(name)
    module.__doc__ = f"{module.__doc__} PYTEST_DONT_REWRITE"  # pytest would warn that it can't rewrite its assertions
own = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
gc.freeze()  # what is imported is no garbage, and each process would copy what it looks through
gc.enable()

def run(arguments, folder, environment):
    # What one of them compiles, the plugin and pytest's, the next reads.
    sys.dont_write_bytecode, sys.pycache_prefix = False, address + "-compiled"
    sys.executable = os.path.join(os.path.dirname(address), "bin", "python")  # so `vram gate` starts pytest here too
    os.chdir(folder)
    places = [place for place in environment.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.path[:] = [folder, *places, *(place for place in sys.path[1:] if place not in own)]
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if arguments[0] == "-u":  # as pytest-xdist starts its workers: they read and write files of their own
        del arguments[0]
    if arguments[0] == "-c":
        sys.argv[:] = ["-c", *arguments[2:]]
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    elif arguments[0].startswith("-m"):
        sys.argv[:] = [arguments[0][2:], *arguments[1:]] if arguments[0][2:] else arguments[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv[:] = arguments
        sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
        runpy.run_path(arguments[0], run_name="__main__")

def ended(arguments, folder, environment):
    # Taking all modules apart at the end would take a second, and ends nothing that the process does not.
    code = 0
    try:
        run(arguments, folder, environment)
    except KeyboardInterrupt:
        raise
    except SystemExit as end:
        if not isinstance(end.code, int) and end.code is not None:
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120  # as Python has it
    os._exit(code & 255)

listener = socket.socket(socket.AF_UNIX)
listener.bind(address)
listener.listen()
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
print("ready", flush=True)
children = 0

def reap(flags):  # waited for, so that their seconds are this process's, and at its end those of the tests
    global children
    while children and os.waitpid(-1, flags)[0]:
        children -= 1

while True:
    try:
        connection, _ = listener.accept()
    except SystemExit:
        reap(0)
        raise
    reap(os.WNOHANG)
    if os.fork():
        connection.close()
        children += 1
        continue
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    request, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    if process := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        connection.sendall(b"%d" % code)
        os._exit(0)
    listener.close()
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    ended(*json.loads(request))
"""


@contextmanager
def commands(folder: Path, *modules: str) -> Iterator[Path]:
    """The folder of the scripts, while a server runs that has imported `modules`."""
    address, scripts = folder / "server", folder / "bin"
    scripts.mkdir()
    for command in (*MODULES, "python", "python3"):
        arguments = ["-m", MODULES[command]] if command in MODULES else []
        script = scripts / command
        script.write_text(_CLIENT.format(python=sys.executable, address=str(address), arguments=arguments))
        script.chmod(0o755)
    command = [sys.executable, "-c", _SERVER, str(address), *modules]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield scripts
        finally:
            server.terminate()
