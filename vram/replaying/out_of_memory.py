"""Out of memory as an outcome: recognising such an error, and wording it with its line, its bytes and the room left."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress

from vram.errors import OutOfMemory
from vram.frames import Frame, short_name, telling_frame
from vram.units import format_bytes, parse_bytes

# Raised as a plain RuntimeError: by the CPU allocator, by CUDA outside PyTorch's allocator, and by cuBLAS for a handle.
_SAYS_SO = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """True for CUDA's OutOfMemoryError and for a RuntimeError that means the same; a MemoryError is Python's own."""
    torch = sys.modules.get("torch")  # not imported by us: a process without it has none of its errors
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    with suppress(Exception):  # a user's own error may have no text
        return any(words in str(error) for words in _SAYS_SO)
    return False


def out_of_memory(error: BaseException, lap: int, sample: int, readings: Mapping[str, int]) -> OutOfMemory:
    """The outcome for an error of a step: sample, line and bytes, and with `readings` at the failure the room left."""
    lines = [_headline(error, lap, sample), *(f"  {line}" for line in room(error, readings))]
    return OutOfMemory(
        "\n".join(lines),
        lap=lap,
        sample=sample,
        requested_bytes=requested_bytes(error),
        line=_failing_line(error),
    )


def requested_bytes(error: BaseException) -> int | None:
    """The bytes of the failed request, as the message words them; None where it does not say."""
    match = re.search(r"[Tt]ried to allocate (\d+(?:\.\d+)?) ?([KMGT]iB|bytes)", str(error))
    if match is None:
        return None
    size, unit = match.groups()
    # "48.00 MiB" is rounded to two digits: the fraction of a byte that may come out means nothing.
    return int(size) if unit == "bytes" else int(float(size) * parse_bytes(f"1 {unit}"))


def room(error: BaseException, readings: Mapping[str, int]) -> list[str]:
    """Lines on what was free, and what was lost to fragmentation: from the error's words, and from readings."""
    lines = []
    free = re.search(r"of which (\d+(?:\.\d+)? ?[KMGT]?iB|\d+ bytes) is free", str(error))
    if free is not None:
        lines.append(f"{free[1]} free on the device")
    if {"reserved", "allocated", "requested"} <= readings.keys():
        unused, rounding = readings["reserved"] - readings["allocated"], readings["allocated"] - readings["requested"]
        lines.append(
            f"{format_bytes(unused)} reserved by PyTorch and in no tensor (fragmented), "
            f"{format_bytes(rounding)} lost to rounding"
        )
    return lines


def _headline(error: BaseException, lap: int, sample: int) -> str:
    """One line: the sample, the line, the bytes."""
    n_bytes = requested_bytes(error)
    size = f"asking for {format_bytes(n_bytes)}" if n_bytes is not None else "asking for an unknown size"
    return f"out of memory in sample {sample} of lap {lap}, {size}, at {_failing_line(error)}"


def _failing_line(error: BaseException) -> str:
    """ "file:line function" of the innermost frame outside torch and vram."""
    frames = [
        Frame(frame.f_code.co_filename, line, short_name(frame.f_code.co_qualname))
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    telling = telling_frame(frames[::-1])
    return "unknown line" if telling is None else str(telling)
