"""Remarks that go with a simulated figure: what was assumed for it, and whose memory at the peak is not counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vram.units import format_bytes

ASSUMED = "assumed: "


@dataclass(frozen=True)
class Uncounted:
    """An operation at `line` whose further memory, `whose`, is not counted.

    `alive_bytes` were requested and alive while it ran, `operand_bytes` of them its operands and results. It takes at
    most `bound_bytes` more, says `bound_source`, where that is known.
    """

    whose: str
    line: str
    alive_bytes: int
    operand_bytes: int
    bound_bytes: int | None = None
    bound_source: str = ""

    def may_exceed(self, peak_bytes: int) -> bool:
        """Whether the operation may need more than `peak_bytes`: libraries commonly take as much as the operands."""
        bound_bytes = self.operand_bytes if self.bound_bytes is None else self.bound_bytes
        return self.alive_bytes + max(1, bound_bytes) > peak_bytes


class Remarks:
    """Notes of a simulation while a figure is made. Only the first line of each assumption is kept."""

    def __init__(self) -> None:
        self._assumed: dict[str, str] = {}
        self._uncounted: dict[tuple[str, str], Uncounted] = {}

    def __bool__(self) -> bool:
        return bool(self._assumed or self._uncounted)

    def assume(self, assumption: str, line: str) -> None:
        """Note that figures depend on an assumption, made at `line`."""
        self._assumed.setdefault(assumption, line)

    def leave_out(self, operation: Uncounted) -> None:
        """Note an operation; of those at one line the one with most alive is kept."""
        key = operation.whose, operation.line
        if key not in self._uncounted or self._uncounted[key].alive_bytes < operation.alive_bytes:
            self._uncounted[key] = operation

    def lines(self, peak_bytes: int) -> tuple[str, ...]:
        """A line for each assumption, and for each library whose memory may make the peak higher than `peak_bytes`."""
        assumed = [f"{ASSUMED}{assumption}, first at {line}" for assumption, line in self._assumed.items()]
        by_library: dict[str, list[Uncounted]] = {}
        for operation in self._uncounted.values():
            if operation.may_exceed(peak_bytes):
                by_library.setdefault(operation.whose, []).append(operation)
        return (*assumed, *(_uncounted_text(operations, peak_bytes) for operations in by_library.values()))


def merged(remarks: Iterable[Iterable[str]]) -> list[str]:
    """Every remark once, in order."""
    return list(dict.fromkeys(line for lines in remarks for line in lines))


def _uncounted_text(operations: list[Uncounted], peak_bytes: int) -> str:
    """ "not counted: cuDNN's workspace of a convolution, at the peak, net.py:12 forward, and 3 more lines"."""
    highest = max(operations, key=lambda one: one.alive_bytes)
    room_bytes = max(0, peak_bytes - highest.alive_bytes)
    where = f"{format_bytes(room_bytes)} below the peak" if room_bytes else "at the peak"
    more = f", and {len(operations) - 1} more lines" if len(operations) > 1 else ""
    bound = "" if highest.bound_bytes is None else f"; at most {format_bytes(highest.bound_bytes)}"
    source = f" ({highest.bound_source})" if bound else ""
    return f"not counted: {highest.whose}, {where}, {highest.line}{more}{bound}{source}"
