"""Memory alive when a sample ran out of it, by line of code, and the holder of the largest part made before."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence

from vram.errors import OutOfMemory
from vram.explanation.allocations import BEFORE, Allocation
from vram.explanation.failures import attempt
from vram.explanation.groups import shapes
from vram.explanation.growth import line_of, names_of
from vram.explanation.holders import holders
from vram.explanation.tracer import TensorTracer, tracer_for
from vram.replaying.collector import unfrozen
from vram.replaying.out_of_memory import is_out_of_memory
from vram.replaying.rerunnable import Rerunnable
from vram.units import format_bytes

_MOST_LINES = 10


def with_what_was_alive(failure: OutOfMemory, rerunnable: Rerunnable) -> OutOfMemory:
    """`failure`, with what was alive by line: the samples up to the failing one run again, traced.

    Raises nothing that this rerun or the search for holders does but KeyboardInterrupt, and keeps nothing of it.
    """
    lines, error = attempt(lambda: _lines_of_rerun(rerunnable, failure.sample))
    if lines is None:
        lines = [f"  what was alive then could not be listed: {error}"]
    return OutOfMemory(
        "\n".join([str(failure), *lines]),
        lap=failure.lap,
        sample=failure.sample,
        requested_bytes=failure.requested_bytes,
        line=failure.line,
    )


def _lines_of_rerun(rerunnable: Rerunnable, sample: int) -> list[str]:
    with tracer_for(rerunnable.device) as tracer:
        title, alive = _alive_again(tracer, rerunnable, sample)
        gc.collect()  # what the failed sample alone held is gone now; what outlives it has a holder

        def held_by(allocations: Sequence[Allocation]) -> str:
            words, error = attempt(lambda: holders(tracer.storages([allocations]), named=names_of(rerunnable)))
            return words[0] if words else f"not known: {error}"

        with unfrozen():
            return [f"  {title}", *alive_lines(alive, held_by)]


def alive_lines(alive: Iterable[Allocation], held_by: Callable[[Sequence[Allocation]], str]) -> list[str]:
    """At most 10 lines of code by what was alive, most bytes first, and who holds the largest part made before."""
    groups: dict[object, list[Allocation]] = {}
    for one in alive:
        key = (one.dtype, one.shape) if one.run == BEFORE else (one.line, one.op, one.dtype)
        groups.setdefault(key, []).append(one)
    sizes = sorted(((sum(one.n_bytes for one in group), group) for group in groups.values()), key=lambda item: -item[0])
    lines, holder_shown = [], False
    for size, group in sizes[:_MOST_LINES]:
        old = group[0].run == BEFORE
        what = f"made before: {group[0].dtype} {shapes(group)}" if old else line_of(group)
        lines.append(f"    {format_bytes(size)} in {len(group):,}: {what}")
        if old and not holder_shown:
            holder_shown = True
            lines += [f"      held by: {words}" for words in [held_by(group)] if words]
    rest = sizes[_MOST_LINES:]
    if rest:
        lines.append(f"    and {format_bytes(sum(size for size, _ in rest))} in {len(rest)} more lines")
    return lines


def _alive_again(tracer: TensorTracer, rerunnable: Rerunnable, last: int) -> tuple[str, list[Allocation]]:
    """A title, and what was alive when it ran out of memory again; at the last sample's peak where it did not."""
    try:
        for index in range(last + 1):
            with tracer.watching(index):
                rerunnable.step(rerunnable.samples[index])
            gc.collect()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit and pytest's own outcomes are no Exceptions
        again = "run again with tracing" if is_out_of_memory(error) else f"run again, it raised {type(error).__name__}"
        return f"alive then ({again}, sample {index}):", [allocation for _, allocation in tracer.living()]
    return f"run again with tracing, there was room; alive at the peak of sample {last}:", tracer.at_peak()
