"""Figures that others measured on real cards and published with the script, beside those of the simulation.

    python -m tests.vram.simulated.published

prints the table that docs/simulated.md has. Figures are there whether they agree or not, but for those rounded too far,
and of an allocator in an unknown state. Units and decimals are the source's. Before torch 2.0
cuBLAS's workspace was not taken from PyTorch's allocator: such rows leave it out. Scripts are written anew from the
shapes, dtypes and the order of operations; where PyTorch did otherwise then, a row says what it does as then.
"""

from __future__ import annotations

from tests.vram.simulated.published import inference, layers, training
from tests.vram.simulated.published.case import Published

__all__ = ["ROWS", "Published"]

ROWS = (*inference.ROWS, *layers.ROWS, *training.ROWS)
