"""Writers that are killed at random moments, and writers at once: `python -m tests.vram.history.hammer FOLDER [TIMES]`.

Prints what it found, and exits with 1 where a finished run is lost or a file can't be read.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.vram.history.made import MACHINE, entry, run_json
from vram.history import store
from vram.history.file_storage import LockedFileStorage

WRITERS, RUNS = 8, 5


class _Quiet:
    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def storage(folder: Path) -> Any:
    made: Any = LockedFileStorage
    return made(folder, _Quiet(), default_machine_id=MACHINE)


def write(folder: Path, name: str, runs: int, told: int) -> None:
    """Save `runs` runs; say so through the pipe `told` after each."""
    here = storage(folder)
    data = run_json([entry(mode=f"mode {number}") for number in range(20)])
    for number in range(runs):
        here.save(data, f"{name}-{number}")
        os.write(told, f"{name}-{number}\n".encode())


def forked(folder: Path, name: str, runs: int, told: int) -> int:
    pid = os.fork()
    if not pid:
        try:
            write(folder, name, runs, told)
        finally:
            os._exit(0)
    return pid


def drained(reader: int) -> list[str]:
    data = b""
    while part := os.read(reader, 65536):
        data += part
    return data.decode().split()


def killed(folder: Path, times: int) -> list[str]:
    """Two writers at a time, each killed at a random moment. Returns the runs that were finished."""
    random.seed(0)
    finished = []
    for time_of in range(times // 2):
        reader, told = os.pipe()
        pids = [forked(folder, f"killed{time_of}.{which}", 1000, told) for which in range(2)]
        os.close(told)
        for pid in pids:
            time.sleep(random.uniform(0, 0.02))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        finished += drained(reader)
        os.close(reader)
    return finished


def at_once(folder: Path, runs: int) -> list[str]:
    """WRITERS writers at the same time."""
    reader, told = os.pipe()
    pids = [forked(folder, f"writer{which}", runs, told) for which in range(WRITERS)]
    os.close(told)
    finished = drained(reader)
    for pid in pids:
        os.waitpid(pid, 0)
    return finished


def main() -> int:
    folder, times = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200
    together = at_once(folder, RUNS)
    finished = killed(folder, times) + together
    given_up = WRITERS * RUNS - len(together)
    history = store.read(f"file://{folder}")
    saved = {run.stem.partition("_")[2] for run in history.runs}
    numbers = [run.number for run in history.runs]
    lost = sorted(set(finished) - saved)
    print(f"{times} kills and {WRITERS} writers at once: {len(finished)} finished runs, {len(history.runs)} saved")
    print(f"{len(lost)} lost {lost[:5]}; {len(history.skipped)} unreadable {list(history.skipped)[:5]}")
    twice = len(numbers) - len(set(numbers))
    print(f"{twice} numbers given twice; {given_up} not saved by writers that nobody killed")
    return int(bool(lost or history.skipped or twice or given_up))


if __name__ == "__main__":
    sys.exit(main())
