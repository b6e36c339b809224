"""`gc.freeze` hides objects from Python's collector, which saves time and hides holders: both ways, and back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from vram.torch_hooks.frozen import frozen_count


def frozen() -> bool:
    """Whether somebody has called `gc.freeze`."""
    return frozen_count() > 0


@contextmanager
def cheap_collections() -> Iterator[None]:
    """Put what is alive now (a loaded model: a million objects) out of the collector's sight, and back afterwards."""
    gc.collect()
    by_someone = frozen()  # gc.unfreeze would undo theirs too
    if not by_someone:
        gc.freeze()
    try:
        yield
    finally:
        if not by_someone:
            gc.unfreeze()


@contextmanager
def unfrozen() -> Iterator[None]:
    """Show objects frozen by `gc.freeze` to the collector, and hide what is there afterwards again."""
    by_someone = frozen()
    if by_someone:
        gc.unfreeze()
    try:
        yield
    finally:
        if by_someone:
            gc.freeze()


@contextmanager
def no_collections() -> Iterator[None]:
    """Collect nothing inside the block, which makes very many objects and hardly any garbage, as imports do."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
