"""Tensors that `gc.freeze` hides from Python's collector were alive before, too."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch

import vram
from vram.explanation.peak import breakdown
from vram.replaying.collector import cheap_collections, frozen, no_collections, unfrozen
from vram.session import SessionOptions, VramSession
from vram.summary.breakdown import from_json
from vram.torch_hooks import storages

INPUT = torch.zeros(1, 256)
WEIGHTS_BYTES = (256 * 256 + 256) * 4
RESULT_BYTES = 256 * 4

pytestmark = pytest.mark.usefixtures("much_to_freeze")


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


class Cycle:
    """Garbage, once nobody has it, that the collector alone frees."""

    def __init__(self) -> None:
        self.itself, self.tensor = self, torch.zeros(1000)


def test_garbage_from_before_the_first_look_is_collected(model: torch.nn.Linear) -> None:
    """The look freezes what was made since somebody froze; so does an explanation, which shows all and hides it."""
    ended = weakref.ref(Cycle())
    storages.living_tensors()
    assert ended() is None
    with unfrozen():
        ended = weakref.ref(Cycle())
    assert (frozen(), ended()) == (True, None)


def test_an_explanation_in_a_replay_leaves_garbage_to_the_replay(model: torch.nn.Linear) -> None:
    """Objects that we have frozen ourselves are shown at the end: the replay counts what its collector frees."""
    gc.unfreeze()
    with cheap_collections(), no_collections(), unfrozen():
        ended = weakref.ref(Cycle())
    assert ended() is not None
    gc.collect()
    assert ended() is None


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


def test_a_breakdown_hides_the_heap_and_knows_what_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """All bytes of the peak have their owner, a module that is not called among them; nothing stays frozen."""
    monkeypatch.setattr(storages, "_frozen", storages._Frozen())
    norm = torch.nn.BatchNorm1d(64)
    recording = vram.replay(lambda x: x + norm.running_mean, [torch.zeros(64)], laps=3)
    before = gc.get_freeze_count()
    at_peak, why = breakdown(recording)
    assert at_peak is not None, why
    found = from_json(at_peak["breakdown"])
    assert found is not None
    assert found.untraced_bytes == 0
    assert found.by_category["buffers"] >= 2 * 64 * 4
    assert found.by_category["weights"] >= 2 * 64 * 4
    assert gc.get_freeze_count() == before
    assert any(one is norm for one in storages.living(torch.nn.Module))


def test_a_session_looks_through_the_heap_once_for_a_recording_and_its_breakdown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The meter looks, and the rerun knows what was there, hidden still: a buffer of a module that is not called, what
    the first lap keeps. All is shown again at the end."""
    monkeypatch.setattr(storages, "_frozen", storages._Frozen())
    norm, kept = torch.nn.BatchNorm1d(64), {}
    unfreeze, events = gc.unfreeze, []

    def show() -> None:
        events.append("shown")
        unfreeze()

    monkeypatch.setattr(gc, "unfreeze", show)

    def step(x: torch.Tensor) -> None:
        events.append("run")
        kept.setdefault("x", x + 1)
        assert (x + norm.running_mean).shape == x.shape

    session = VramSession(SessionOptions(device="cpu", breakdown="settled"))
    session.replay(step, [torch.zeros(64)], laps=3)
    assert events == ["shown", *["run"] * 4, "shown"]
    assert not frozen()
    found = session.summaries[0].breakdown
    assert found is not None
    assert found.untraced_bytes == 0
    assert found.by_category["buffers"] >= 2 * 64 * 4
    assert found.by_category["weights"] >= 2 * 64 * 4


def test_what_is_hidden_later_is_known_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay hides what its meters made once they are there, and does not look through everything again."""
    monkeypatch.setattr(storages, "_frozen", storages._Frozen())
    unfreeze, shown = gc.unfreeze, []
    monkeypatch.setattr(gc, "unfreeze", lambda: (shown.append(1), unfreeze()))
    with cheap_collections() as hide_more:
        storages.living_tensors()
        later = torch.zeros(64)
        hide_more()
        assert all(one is not later for one in gc.get_objects())
        assert any(one is later for one in storages.living_tensors())
        assert len(shown) == 1
