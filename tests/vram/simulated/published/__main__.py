"""Prints the table."""

from __future__ import annotations

from tests.vram.simulated.published import ROWS

print("| measured by | on | what | there | simulated | |\n|---|---|---|---|---|---|")
for row in ROWS:
    print(row.row(row.simulated()), flush=True)
