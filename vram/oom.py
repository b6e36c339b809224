"""Telling an out-of-memory error from any other, and what it says of itself."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import torch

from vram.units import format_bytes, parse_bytes

_CPU = "DefaultCPUAllocator"  # the CPU allocator raises a plain RuntimeError


def is_out_of_memory(error: BaseException) -> bool:
    """True for CUDA's OutOfMemoryError and for the CPU allocator's RuntimeError; a MemoryError is Python's own."""
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and _CPU in str(error))


def requested_bytes(error: BaseException) -> int | None:
    """The bytes the failed request asked for, as the message words them; None where it does not say."""
    found = re.search(r"[Tt]ried to allocate (\d+(?:\.\d+)?) ?([KMGT]iB|bytes)", str(error))
    if found is None:
        return None
    size, unit = found.groups()
    # "48.00 MiB" is rounded to two digits: the fraction of a byte that may come out means nothing.
    return int(size) if unit == "bytes" else int(float(size) * parse_bytes(f"1 {unit}"))


def failing_line(error: BaseException) -> str:
    """ "file:line function" of the innermost frame outside torch itself."""
    frames = traceback.extract_tb(error.__traceback__)
    home = str(Path(torch.__file__).parent)
    outside = [frame for frame in frames if not frame.filename.startswith(home)] or list(frames)
    if not outside:
        return "unknown line"
    return f"{outside[-1].filename}:{outside[-1].lineno} {outside[-1].name}"


def describe(error: BaseException, lap: int, sample: int) -> str:
    """One line: the sample, the line, the bytes."""
    asked = requested_bytes(error)
    size = f"asking for {format_bytes(asked)}" if asked is not None else "asking for an unknown size"
    return f"out of memory in sample {sample} of lap {lap}, {size}, at {failing_line(error)}"
