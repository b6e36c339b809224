"""`gc.freeze` hides objects from Python's collector: by whom, and back. Imports no torch."""

from __future__ import annotations

import gc

# Python 3.12 counts immortal objects among the frozen, 375 at its start. Who freezes a process that has imported torch
# hides hundreds of thousands.
_MOST_IMMORTAL = 10_000

_ours = False  # whether we hid what is hidden: to count frozen objects takes as long as to look through them


def frozen() -> bool:
    """Whether somebody has called `gc.freeze`."""
    return _ours or gc.get_freeze_count() > _MOST_IMMORTAL


def freeze(*, ours: bool) -> None:
    """Hide what is there. `ours`: we show it again, and nobody else had hidden anything."""
    global _ours
    gc.freeze()
    _ours = ours


def freeze_again(*, ours: bool) -> None:
    """Hide what is there, which was hidden before. What another has frozen stays so: garbage goes first, as none that
    is hidden is ever collected."""
    if not ours:
        gc.collect()
    freeze(ours=ours)


def unfreeze() -> bool:
    """Show what is hidden; whether we had hidden it."""
    global _ours
    gc.unfreeze()
    ours, _ours = _ours, False
    return ours
