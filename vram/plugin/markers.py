"""What the markers `vram_limit` and `vram_leak_free` ask of a test, and whether it kept to it. Arithmetic on numbers.

`vram_limit("48 MiB")`: the peak above what is alive when the body of the test begins. `vram_leak_free`, or
`vram_leak_free(allow="1 MiB")` for a known leak: bytes that are alive when the body ends and were not when it began.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vram.errors import MemoryLeak, PeakExceeded
from vram.units import format_bytes, parse_bytes
from vram.verdict.peak import judge_peak

LIMIT, LEAK_FREE = "vram_limit", "vram_leak_free"
HELP = (
    f"{LIMIT}(size): fail the test if its body needs more memory, as in {LIMIT}('48 MiB'), than was alive before it",
    f"{LEAK_FREE}(allow='0 B'): fail the test if its body leaves more memory behind",
)


class Mark(Protocol):
    """A marker as it was written: its name and arguments."""

    @property
    def name(self) -> str: ...  # noqa: D102 - a field

    @property
    def args(self) -> tuple[Any, ...]: ...  # noqa: D102 - a field

    @property
    def kwargs(self) -> Mapping[str, Any]: ...  # noqa: D102 - a field


@dataclass(frozen=True)
class MarkerLimits:
    """What a test's markers ask for, in bytes; None where they don't ask."""

    limit_bytes: int | None
    allow_bytes: int | None


def marker_limits(marks: Iterable[Mark]) -> MarkerLimits | None:
    """What the markers of one test ask for, those of others left aside; None where there is nothing.

    Raises ValueError for two of one kind, arguments that are not its own, and sizes that cannot be read.
    """
    found: dict[str, list[Mark]] = {LIMIT: [], LEAK_FREE: []}
    for mark in marks:
        if mark.name in found:
            found[mark.name].append(mark)
    for name, several in found.items():
        if len(several) > 1:
            raise ValueError(f"a test takes one {name}, got {len(several)}: {', '.join(map(_written, several))}")
    if not any(found.values()):
        return None
    limit = [_limit(mark) for mark in found[LIMIT]]
    allow = [_allow(mark) for mark in found[LEAK_FREE]]
    return MarkerLimits(limit[0] if limit else None, allow[0] if allow else None)


def judge(
    limits: MarkerLimits, peak_bytes: int, kept_bytes: int | None, kept: Sequence[str] = ()
) -> PeakExceeded | MemoryLeak | None:
    """What to fail the test with; None where it kept to what was asked: exactly the limit, exactly what is allowed.

    `kept` are lines that tell of what was kept.
    """
    found: list[PeakExceeded | MemoryLeak] = []
    if limits.limit_bytes is not None:
        overrun = judge_peak(peak_bytes, limits.limit_bytes)
        if overrun is not None:
            found.append(PeakExceeded(f"{LIMIT}: {overrun}, above what was alive before the test"))
    if limits.allow_bytes is not None and kept_bytes is not None and kept_bytes > limits.allow_bytes:
        text = f"{LEAK_FREE}: the test keeps {kept_bytes:,} B ({format_bytes(kept_bytes)})"
        if limits.allow_bytes:
            text += f", {kept_bytes - limits.allow_bytes:,} B over the allowed {limits.allow_bytes:,} B"
        found.append(MemoryLeak("\n".join([text, *kept])))
    if len(found) == 2:
        return type(found[0])(f"{found[0]}\n{found[1]}")
    return found[0] if found else None


def _limit(mark: Mark) -> int:
    if len(mark.args) != 1 or mark.kwargs:
        raise ValueError(f'{LIMIT} takes one size, as in {LIMIT}("48 MiB"), got {_written(mark)}')
    return _size(mark, mark.args[0])


def _allow(mark: Mark) -> int:
    if mark.args or mark.kwargs.keys() - {"allow"}:
        raise ValueError(f'{LEAK_FREE} takes allow="SIZE" and nothing else, got {_written(mark)}')
    return _size(mark, mark.kwargs.get("allow", 0))


def _size(mark: Mark, size: Any) -> int:
    try:
        return parse_bytes(size)
    except ValueError as error:
        raise ValueError(f"{mark.name}: {error}") from None


def _written(mark: Mark) -> str:
    values = [repr(value) for value in mark.args] + [f"{name}={value!r}" for name, value in mark.kwargs.items()]
    return f"{mark.name}({', '.join(values)})"
