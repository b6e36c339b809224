"""The simulated card of most tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from vram.cards import Card
from vram.simulated.context import SimulatedCuda

A_CARD = Card("8GiB", 8 * 2**30, (8, 0), context_bytes=0)


def device(card: Card | str = A_CARD, **options: Any) -> SimulatedCuda:
    """A card with nothing on it, not even a workspace of cuBLAS."""
    return SimulatedCuda(card, **{"cublas_workspace": False, **options})


def figures(run: Callable[[], object]) -> list[int]:
    """Requested bytes at the peak and kept, and blocks at the peak, of what `run` makes and returns."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_stats()
    result = run()
    after = torch.cuda.memory_stats()
    del result
    peaks = (("requested_bytes", "peak"), ("requested_bytes", "current"), ("allocation", "peak"))
    return [after[f"{name}.all.{which}"] - before[f"{name}.all.current"] for name, which in peaks]
