"""The JSON file of `--vram-report` (schema 1)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vram.files import atomic_write
from vram.summary import RunSummary


def write_report(path: Path, run: RunSummary) -> None:
    """Write the run to `path`, atomically; missing folders are made. Raises OSError where it can't be written.

    A figure that is no finite number, which JSON can't say, is null.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(_finite(run.to_json()), indent=1, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
