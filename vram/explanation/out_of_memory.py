"""Out of memory as an outcome: telling such an error from others, what it says of itself, and what was alive."""

from __future__ import annotations

import gc
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from vram.errors import OutOfMemory
from vram.explanation.allocations import BEFORE, Allocation
from vram.frames import Frame, short_name, telling_frame
from vram.replaying.collector import unfrozen
from vram.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from vram.explanation.tracer import TensorTracer
    from vram.replaying.loop import Replayed

_MOST_LINES = 10
# Raised as a plain RuntimeError: by the CPU allocator, by CUDA outside PyTorch's allocator, and by cuBLAS for a handle.
_SAYS_SO = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """True for CUDA's OutOfMemoryError and for a RuntimeError that means the same; a MemoryError is Python's own."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAYS_SO)


def requested_bytes(error: BaseException) -> int | None:
    """The bytes the failed request asked for, as the message words them; None where it does not say."""
    found = re.search(r"[Tt]ried to allocate (\d+(?:\.\d+)?) ?([KMGT]iB|bytes)", str(error))
    if found is None:
        return None
    size, unit = found.groups()
    # "48.00 MiB" is rounded to two digits: the fraction of a byte that may come out means nothing.
    return int(size) if unit == "bytes" else int(float(size) * parse_bytes(f"1 {unit}"))


def failing_line(error: BaseException) -> str:
    """ "file:line function" of the innermost frame outside torch and vram."""
    frames = [
        Frame(frame.f_code.co_filename, line, short_name(frame.f_code.co_qualname))
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    telling = telling_frame(frames[::-1])
    return "unknown line" if telling is None else str(telling)


def describe(error: BaseException, lap: int, sample: int) -> str:
    """One line: the sample, the line, the bytes."""
    asked = requested_bytes(error)
    size = f"asking for {format_bytes(asked)}" if asked is not None else "asking for an unknown size"
    return f"out of memory in sample {sample} of lap {lap}, {size}, at {failing_line(error)}"


def room(error: BaseException, readings: Mapping[str, int]) -> list[str]:
    """What was free, and what was lost to fragmentation: from a reading at the failure, and from the error's words."""
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


def with_what_was_alive(failure: OutOfMemory, replayed: Replayed) -> OutOfMemory:
    """`failure`, with what was alive by line: the samples up to the failing one run again, traced.

    Raises nothing that this rerun does, and keeps nothing of it.
    """
    from vram.explanation.growth import names_of
    from vram.explanation.holders.search import holder
    from vram.explanation.tracer import tracer_for

    with tracer_for(replayed.device) as tracer:
        title, alive = _alive_again(tracer, replayed, failure.sample)
        gc.collect()  # what the failed sample alone held is gone now; what outlives it has a holder

        def held_by(allocations: Sequence[Allocation]) -> str:
            storages = (tracer.storage_of(allocation) for allocation in allocations)
            storage = next((storage for storage in storages if storage is not None), None)
            return holder(storage, named=names_of(replayed)) if storage is not None else ""

        with unfrozen():
            told = [f"  {title}", *alive_lines(alive, held_by)]
    return OutOfMemory(
        "\n".join([str(failure), *told]),
        lap=failure.lap,
        sample=failure.sample,
        requested_bytes=failure.requested_bytes,
        line=failure.line,
    )


def alive_lines(alive: Iterable[Allocation], held_by: Callable[[Sequence[Allocation]], str]) -> list[str]:
    """What was alive, most bytes first: at most 10 lines of code, and who holds the largest part made before."""
    from vram.explanation.growth import line_of, shapes

    groups: dict[object, list[Allocation]] = {}
    for one in alive:
        key = (one.dtype, one.shape) if one.run == BEFORE else (one.line, one.op, one.dtype)
        groups.setdefault(key, []).append(one)
    sizes = sorted(((sum(one.n_bytes for one in group), group) for group in groups.values()), key=lambda item: -item[0])
    lines, told_holder = [], False
    for size, group in sizes[:_MOST_LINES]:
        old = group[0].run == BEFORE
        what = f"made before: {group[0].dtype} {shapes(group)}" if old else line_of(group)
        lines.append(f"    {format_bytes(size)} in {len(group):,}: {what}")
        if old and not told_holder:
            told_holder = True
            lines += [f"      held by: {words}" for words in [held_by(group)] if words]
    rest = sizes[_MOST_LINES:]
    if rest:
        lines.append(f"    and {format_bytes(sum(size for size, _ in rest))} in {len(rest)} more lines")
    return lines


def _alive_again(tracer: TensorTracer, replayed: Replayed, last: int) -> tuple[str, list[Allocation]]:
    """A title, and what was alive when it ran out of memory again; at the last sample's peak where it did not."""
    try:
        for index in range(last + 1):
            with tracer.watching(index):
                replayed.step(replayed.samples[index])
            gc.collect()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # pytest's own outcomes are no Exceptions
        again = "run again with tracing" if is_out_of_memory(error) else f"run again, it raised {type(error).__name__}"
        return f"alive then ({again}, sample {index}):", [allocation for _, allocation in tracer.living()]
    return f"run again with tracing, there was room; alive at the peak of sample {last}:", tracer.at_peak()
