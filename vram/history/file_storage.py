"""pytest-benchmark's file store, written to by one process at a time and never half: importing this imports it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from filelock import FileLock
from pytest_benchmark.storage.file import FileStorage
from pytest_benchmark.utils import safe_dumps

from vram.files import complete_file

_WAIT_SECONDS = 60.0  # for another writer, which needs milliseconds
_NUMBER = re.compile(r"(\d{4,})_")


class LockedFileStorage(FileStorage):
    """Files `0001_NAME.json` in a folder a machine, as pytest-benchmark writes and reads them.

    A writer holds the folder's lock, which the system gives back when a process dies, and the file gets its name when
    it is complete. An existing file is never written to. `save` raises OSError where the run could not be saved.
    """

    def save(self, output_json: Any, save: str) -> None:
        """Save a run as the next number, called `save`."""
        folder = Path(self.get("x")).parent  # type: ignore[no-untyped-call]
        data = str(safe_dumps(output_json, ensure_ascii=True, indent=1)).encode()  # type: ignore[no-untyped-call]
        lock = FileLock(folder / ".lock", timeout=_WAIT_SECONDS, poll_interval=0.01)
        with lock, complete_file(folder / ".unfinished", data) as complete:
            path = _named(complete, folder, save)
        self.logger.info(f"Saved benchmark data in: {path}")


def _named(complete: Path, folder: Path, save: str) -> Path:
    """Give the file its name, with the next number. A writer that takes no lock may be quicker: then the one after."""
    while True:
        numbers = [int(found[1]) for file in folder.iterdir() if (found := _NUMBER.match(file.name))]
        path = folder / f"{max(numbers, default=0) + 1:04}_{save}.json"
        try:
            path.hardlink_to(complete)
        except FileExistsError:
            continue
        except OSError:  # a file system without links
            if path.exists():
                continue
            complete.replace(path)
        return path
