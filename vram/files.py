"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends well, and that is gone when it does not.

    Raises OSError where it can't be written.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name[:20])
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:  # an interruption too leaves nothing behind
        Path(temporary).unlink(missing_ok=True)
        raise
