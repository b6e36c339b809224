"""Headroom: how much more than its recorded figure a budget allows, as text that people read and write."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vram.units import parse_bytes

RULE = "a headroom must be a percentage or a size, as in +2% or +64MiB"
_SHARE = re.compile(r"(\d{1,4})(?:\.(\d{1,3}))?\s*%")
_MOST_BYTES = 2**63  # TOML's whole numbers end there


@dataclass(frozen=True)
class Headroom:
    """Room above a recorded figure: `text` is a share of it ("2%") or a size ("64 MiB")."""

    text: str

    def above(self, figure_bytes: int) -> int:
        """The limit in bytes for a figure that is recorded. A share of a byte is dropped, never rounded up."""
        share = _SHARE.fullmatch(self.text)
        if share is None:
            return figure_bytes + parse_bytes(self.text)
        fraction = share[2] or ""
        parts = 100 * int("1" + "0" * len(fraction))
        return figure_bytes + figure_bytes * int(share[1] + fraction) // parts


def parse_headroom(text: object) -> Headroom:
    """The headroom of "+2%", "2.5 %", "+64MiB". Raises ValueError for anything else."""
    plain = text.strip().removeprefix("+").strip() if isinstance(text, str) else ""
    try:
        if _SHARE.fullmatch(plain):
            return Headroom(re.sub(r"\s", "", plain))
        if 0 <= parse_bytes(plain) < _MOST_BYTES:
            return Headroom(re.sub(r"(?<=\d)\s*(?=[A-Za-z])", " ", plain))
    except ValueError:
        pass  # its rule is that of sizes alone
    raise ValueError(f"{RULE}, got {text!r}")
