"""The simulated card of most tests."""

from __future__ import annotations

from typing import Any

from vram.cards import Card
from vram.simulated.context import SimulatedCuda

A_CARD = Card("8GiB", 8 * 2**30, (8, 0), context_bytes=0)


def device(card: Card | str = A_CARD, **options: Any) -> SimulatedCuda:
    """A card with nothing on it, not even a workspace of cuBLAS."""
    return SimulatedCuda(card, **{"cublas_workspace": False, **options})
