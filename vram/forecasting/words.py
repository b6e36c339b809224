"""A forecast in words: one wording for `vram forecast` and for programs that forecast."""

from __future__ import annotations

from collections.abc import Sequence

from vram.cards import Card
from vram.forecasting.playing import Holder
from vram.units import format_bytes


def fits_text(card: Card, spare_bytes: int) -> str:
    """ "fits A10 (22.06 GiB, compute capability 8.6), 8.20 GiB to spare"."""
    return f"fits {card}, {format_bytes(max(0, spare_bytes))} to spare"


def full_text(card: Card, spare_bytes: int, where: str) -> str:
    """ "does not fit A10 (...), out of memory in call 1: 2.31 GiB are missing"."""
    missing = f": {format_bytes(-spare_bytes)} are missing" if spare_bytes < 0 else ""
    return f"does not fit {card}, out of memory {where}{missing}"


def smallest_text(card: Card | None) -> str:
    """The smallest listed card, in a line."""
    return f"the smallest listed card that fits: {card or 'none'}"


def holder_lines(holders: Sequence[Holder], most: int) -> list[str]:
    """ "  512.00 MiB in 2: model.py:12 forward", a line for each of the first `most`."""
    return [f"  {format_bytes(one.n_bytes)} in {one.count:,}: {one.line}" for one in holders[:most]]


def kept_text(kept_bytes: int, until_full: int | None, what: str) -> str:
    """How much stays behind each time, and after how many more of `what` the card is full."""
    if until_full is None:
        return f"the same again: nothing more stays behind, however many {what}"
    more = f"the card is full after {until_full:,} {what}"
    return f"the same again: {format_bytes(kept_bytes)} more each time; {more}"


def without_advice(message: str) -> str:
    """CUDA's message without its advice, which a simulation can't take."""
    return message.partition(" Including")[0]
