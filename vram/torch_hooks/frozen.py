"""Whether somebody has called `gc.freeze`. Imports no torch."""

from __future__ import annotations

import gc

# Python 3.12 counts immortal objects among the frozen, 375 at its start. Who freezes a process that has imported torch
# hides hundreds of thousands.
_MOST_IMMORTAL = 10_000


def frozen_count() -> int:
    """Objects that `gc.freeze` hides from the collector; 0 where nobody has called it."""
    count = gc.get_freeze_count()
    return count if count > _MOST_IMMORTAL else 0
