"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def is_file(name: str) -> bool:
    """True where `name` is that of a file; a name that no file can have is none."""
    try:
        return Path(name).is_file()
    except OSError:
        return False


def is_folder(name: str) -> bool:
    """True where `name` is that of a folder; a name that no folder can have is none."""
    try:
        return Path(name).is_dir()
    except OSError:
        return False


def atomic_write(path: Path, data: bytes) -> None:
    """Put `data` in the place of `path`, which at every moment holds the old content or all of the new.

    A file that is there keeps its permissions. Raises OSError where it can't be written.
    """
    with complete_file(path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.unfinished"), data) as complete:
        with suppress(FileNotFoundError):
            complete.chmod(path.stat().st_mode)
        complete.replace(path)


@contextmanager
def complete_file(path: Path, data: bytes) -> Iterator[Path]:
    """`path`, made anew with all of `data` on the disk, for the block to give it its name; then it is gone.

    A killed writer may have left one, half written or as a second name of another file: that is never written into.
    """
    path.unlink(missing_ok=True)
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:  # an interruption too leaves nothing behind
        with suppress(OSError):
            path.unlink()
