"""`gc.freeze` hides objects from Python's collector, which saves time and hides holders: both ways, and back."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vram.torch_hooks.frozen import freeze, freeze_again, frozen, unfreeze


@contextmanager
def cheap_collections() -> Iterator[Callable[[], None]]:
    """Put what is alive now (a loaded model: a million objects) out of the collector's sight, and back afterwards.

    Gives a function that puts what was made since there too.
    """
    gc.collect()
    by_someone = frozen()  # gc.unfreeze would undo theirs too
    if not by_someone:
        freeze(ours=True)
    try:
        yield _nothing if by_someone else _freeze_more
    finally:
        if not by_someone:
            unfreeze()


def _nothing() -> None:
    pass


def _freeze_more() -> None:
    from vram.torch_hooks.storages import freeze_more  # late: importing vram imports no torch

    freeze_more()


@contextmanager
def unfrozen() -> Iterator[None]:
    """Show objects frozen by `gc.freeze` to the collector, and hide what is there afterwards again."""
    by_someone = frozen()
    ours = by_someone and unfreeze()
    try:
        yield
    finally:
        if by_someone:
            freeze_again(ours=ours)


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
