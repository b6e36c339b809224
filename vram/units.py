"""Bytes as text and back. Binary units only: a GB in a limit would be read one way and printed another."""

from __future__ import annotations

import re

_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")


def format_bytes(n_bytes: float) -> str:
    """`n_bytes` in the largest binary unit that keeps the number at 1 or above: 1536 -> "1.50 KiB", 512 -> "512 B"."""
    sign, size = ("-" if n_bytes < 0 else ""), abs(n_bytes)
    for unit, factor in reversed(_UNITS.items()):
        if size >= factor and factor > 1:
            return f"{sign}{size / factor:,.2f} {unit}"
    return f"{sign}{size:,.0f} B" if float(size).is_integer() else f"{sign}{size:,.1f} B"


def parse_bytes(size: str | int) -> int:
    """Bytes of "48 MiB", "1.5GiB" or an int. Raises ValueError for anything else, and for a fraction of a byte."""
    if isinstance(size, int) and not isinstance(size, bool):
        if size < 0:
            raise ValueError(f"a size must not be negative, got {size}")
        return size
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    if match is None or match[2] not in _UNITS:
        raise ValueError(f'a size must be a number and one of {", ".join(_UNITS)}, as in "48 MiB", got {size!r}')
    number, factor = match[1], _UNITS[match[2]]
    whole, _, fraction = number.partition(".")
    scale: int = 10 ** len(fraction)
    n_bytes, rest = divmod(int(whole + fraction) * factor, scale)
    if rest:
        # Not rounded: a limit holds to the byte, and it must be the one that is written.
        near_bytes = max(1, n_bytes)
        fitting = {name: its for name, its in _UNITS.items() if its < factor and its <= near_bytes}
        unit, smaller = max(fitting.items(), key=lambda each: each[1], default=("B", 1))
        near = f'"{near_bytes} B"' + (f' or "{near_bytes // smaller} {unit}"' if smaller > 1 else "")
        raise ValueError(
            f"a size must come to a whole number of bytes, and {size!r} lies between {n_bytes:,} and {n_bytes + 1:,}: "
            f"say {near}"
        )
    return n_bytes
