"""Tensors that `gc.freeze` hides from Python's collector were alive before, too."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch

import vram
from vram.replaying.collector import frozen, unfrozen
from vram.torch_hooks import storages

INPUT = torch.zeros(1, 256)
WEIGHTS_BYTES = (256 * 256 + 256) * 4
RESULT_BYTES = 256 * 4

pytestmark = pytest.mark.usefixtures("whole_heap")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.nn.Linear]:
    """A model that somebody froze once it was loaded."""
    monkeypatch.setattr(storages, "_frozen", storages._Frozen())
    model = torch.nn.Linear(256, 256)
    gc.collect()
    gc.freeze()
    yield model
    gc.unfreeze()


def needed_bytes(model: torch.nn.Module) -> tuple[int, int]:
    """Bytes before the first use of the model, and what that adds to them at most."""
    with torch.inference_mode(), vram.measure("cpu") as measured:
        model(INPUT)
    return measured.before_bytes, measured.peak_bytes - measured.before_bytes


def test_frozen_weights_are_not_billed_to_who_uses_them_first(model: torch.nn.Linear) -> None:
    """Also after an explanation, which has the frozen objects shown and hidden again, with those made since."""
    before_bytes, added_bytes = needed_bytes(model)
    assert (before_bytes >= WEIGHTS_BYTES, added_bytes) == (True, RESULT_BYTES)
    later = torch.nn.Linear(256, 256)
    with unfrozen():
        pass
    assert frozen()
    assert needed_bytes(later) == (before_bytes + WEIGHTS_BYTES, RESULT_BYTES)
    del later
    assert needed_bytes(model)[0] == before_bytes


def test_frozen_objects_are_looked_through_once(model: torch.nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes long, and freezes what was made since: not again before somebody freezes more."""
    unfreeze, shown = gc.unfreeze, []
    monkeypatch.setattr(gc, "unfreeze", lambda: (shown.append(1), unfreeze()))
    assert [needed_bytes(model)[1] for _ in range(3)] == [RESULT_BYTES] * 3
    assert len(shown) == 1
    gc.freeze()
    needed_bytes(model)
    assert len(shown) == 2


def test_what_is_frozen_anew_is_seen_where_less_is_frozen_than_before(model: torch.nn.Linear) -> None:
    """Objects that were frozen end, a model is loaded, an explanation shows and hides all that is left: it counts."""
    ballast: list[object] = [[] for _ in range(10_000)]
    gc.freeze()
    before_bytes, _ = needed_bytes(model)
    del ballast
    later = torch.nn.Linear(256, 256)
    with unfrozen():
        pass
    assert needed_bytes(later) == (before_bytes + WEIGHTS_BYTES, RESULT_BYTES)
