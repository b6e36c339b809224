"""The JSON file of `--vram-report` (schema 1)."""

from __future__ import annotations

import json
from pathlib import Path

from vram.files import atomic_write
from vram.summary import RunSummary


def write_report(path: Path, run: RunSummary) -> None:
    """Write the run to `path`, atomically; missing folders are made. Raises OSError where it can't be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(run.to_json(), indent=1) + "\n").encode())
