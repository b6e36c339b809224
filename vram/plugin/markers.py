"""Limits that the markers `vram_limit` and `vram_leak_free` set, and whether a test kept them. Arithmetic on numbers.

`vram_limit("48 MiB")`: the peak above what is alive when the body of the test begins. `vram_leak_free`, or
`vram_leak_free(allow="1 MiB")` for a known leak: bytes that are alive when the body ends and were not when it began.
Either takes `allocates=False`, for a test that need not allocate anything on the device measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol

from vram.errors import MemoryLeak, PeakExceeded
from vram.units import format_bytes, parse_bytes
from vram.verdict.peak import judge_peak

if TYPE_CHECKING:
    import pytest

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
    """Limits that a test's markers set, in bytes; None for a marker that is not there.

    `allocates` is False where a marker says that the test need not allocate anything.
    """

    limit_bytes: int | None
    allow_bytes: int | None
    allocates: bool = True

    @property
    def expects_allocations(self) -> bool:
        """False where the test was said to allocate nothing, in words or by a limit of 0."""
        return self.allocates and self.limit_bytes != 0


def limits_of(item: pytest.Item) -> MarkerLimits | None:
    """Limits that the item's markers set; of each kind the closest counts, as `closest` has it. None without any.

    Raises ValueError as `marker_limits` does, for a marker that is overridden too.
    """
    for mark in item.iter_markers():
        marker_limits([mark])
    return marker_limits(closest(item))


def closest(item: pytest.Item) -> list[Mark]:
    """Our markers that count, several of one kind only where they are written at the same place.

    A parameter's come before the function's, then those of its class, of base classes, and of the module. Markers added
    by `add_marker` keep the place that pytest gives them. pytest's `get_closest_marker` differs in two cases where the
    order is clear: it prefers the function to its parameter, and the base class to the class.
    """
    marks: list[Mark] = []
    for name in (LIMIT, LEAK_FREE):
        places = (place for node in reversed(item.listchain()) for place in _places(node))
        of_name = ([mark for mark in place if mark.name == name] for place in places)
        marks += next(filter(None, of_name), [])
    return marks


def _places(node: Any) -> list[list[Mark]]:
    """The markers of one node by where they are written, closest first."""
    own: list[Mark] = list(node.own_markers)
    code: Any = getattr(node, "obj", None)
    written = [getattr(getattr(node, "callspec", None), "marks", ())]
    if isinstance(code, type):
        written += [vars(each).get("pytestmark", ()) for each in code.__mro__]
    else:
        written.append(getattr(code, "pytestmark", ()))
    # Compared by identity: markers that read alike may be written in several places.
    places = [[mark for mark in _unpacked(marks) if any(mark is each for each in own)] for marks in written]
    placed = {id(mark) for place in places for mark in place}
    first = list(takewhile(lambda mark: id(mark) not in placed, own))
    last = [mark for mark in own[len(first) :] if id(mark) not in placed]
    return [*([mark] for mark in first), *places, *([mark] for mark in last)]


def _unpacked(marks: Any) -> list[Any]:
    """The marks of an attribute `pytestmark`: one or a list, of decorators or marks."""
    return [getattr(mark, "mark", mark) for mark in (marks if isinstance(marks, Sequence) else [marks])]


def marker_limits(marks: Iterable[Mark]) -> MarkerLimits | None:
    """Limits that the markers of one test set, those of other plugins left aside; None where there are none.

    Raises ValueError for two of one kind, arguments that are not its own, and sizes that cannot be read.
    """
    by_name: dict[str, list[Mark]] = {LIMIT: [], LEAK_FREE: []}
    for mark in marks:
        if mark.name in by_name:
            by_name[mark.name].append(mark)
    for name, several in by_name.items():
        if len(several) > 1:
            raise ValueError(f"a test takes one {name}, got {len(several)}: {', '.join(map(_written, several))}")
    if not any(by_name.values()):
        return None
    limit = [_limit(mark) for mark in by_name[LIMIT]]
    allow = [_allow(mark) for mark in by_name[LEAK_FREE]]
    allocates = [_allocates(mark) for marks in by_name.values() for mark in marks]
    return MarkerLimits(limit[0] if limit else None, allow[0] if allow else None, all(allocates))


def judge(
    limits: MarkerLimits,
    peak_bytes: int,
    kept_bytes: int | None,
    kept: Sequence[str] = (),
    at_peak: Sequence[str] = (),
) -> PeakExceeded | MemoryLeak | None:
    """Error to fail the test with; None where it kept its limits: exactly the limit passes, exactly the allowance too.

    `kept` are lines that name the tensors that were kept, `at_peak` those that name what was alive at the peak.
    """
    errors: list[PeakExceeded | MemoryLeak] = []
    if limits.limit_bytes is not None:
        overrun = judge_peak(peak_bytes, limits.limit_bytes)
        if overrun is not None:
            text = f"{LIMIT}: {overrun}, above what was alive before the test"
            errors.append(PeakExceeded("\n".join([text, *at_peak])))
    if limits.allow_bytes is not None and kept_bytes is not None and kept_bytes > limits.allow_bytes:
        text = f"{LEAK_FREE}: the test keeps {kept_bytes:,} B ({format_bytes(kept_bytes)})"
        if limits.allow_bytes:
            text += f", {kept_bytes - limits.allow_bytes:,} B over the allowed {limits.allow_bytes:,} B"
        errors.append(MemoryLeak("\n".join([text, *kept])))
    if len(errors) == 2:
        return type(errors[0])(f"{errors[0]}\n{errors[1]}")
    return errors[0] if errors else None


def _limit(mark: Mark) -> int:
    if len(mark.args) != 1 or mark.kwargs.keys() - {"allocates"}:
        raise ValueError(f'{LIMIT} takes one size, as in {LIMIT}("48 MiB"), got {_written(mark)}')
    return _size(mark, mark.args[0])


def _allow(mark: Mark) -> int:
    if mark.args or mark.kwargs.keys() - {"allow", "allocates"}:
        raise ValueError(f'{LEAK_FREE} takes allow="SIZE" and nothing else, got {_written(mark)}')
    return _size(mark, mark.kwargs.get("allow", 0))


def _allocates(mark: Mark) -> bool:
    allocates = mark.kwargs.get("allocates", True)
    if not isinstance(allocates, bool):
        raise ValueError(f"{mark.name}: allocates must be True or False, got {allocates!r}")
    return allocates


def _size(mark: Mark, size: Any) -> int:
    try:
        return parse_bytes(size)
    except ValueError as error:
        raise ValueError(f"{mark.name}: {error}") from None


def _written(mark: Mark) -> str:
    values = [repr(value) for value in mark.args] + [f"{name}={value!r}" for name, value in mark.kwargs.items()]
    return f"{mark.name}({', '.join(values)})"
