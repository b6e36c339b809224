"""Ways out of growth: each is applied in a program that is otherwise the same, which keeps the bytes less that it says;
none is made of programs that only look alike. Whole explanations with them: the zoo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

import vram
from vram.explanation import suggested
from vram.explanation import suggestions as patterns
from vram.explanation.groups import by_line
from vram.explanation.retained import Names
from vram.explanation.suggested import suggested_for_growth
from vram.explanation.suggestions.growth import GrownLine, Lap
from vram.explanation.traced import run_traced
from vram.explanation.tracer import tracer_for
from vram.replaying.collector import cheap_collections
from vram.replaying.rerunnable import Rerunnable
from vram.session import SessionOptions, VramSession

Step = Callable[[torch.Tensor], object]
DEVICES = ("cpu", "simulated:A100-40")
BY_GRAPH = "autograd graph (PowBackward0) of a tensor held by list `KEPT` (4 items), global of module train"
KEPT: list[Any] = []
BY_NAME: dict[Any, Any] = {}


class Attention(nn.Module):
    """Tokens [1, T, 8] in, their sum and a cache of two layers out."""

    def forward(self, x: torch.Tensor, past: DynamicCache | None = None) -> tuple[torch.Tensor, DynamicCache]:
        past = DynamicCache() if past is None else past
        for layer in range(2):
            keys, values = past.update(x[:, None] + layer, x[:, None] - layer, layer)
        return (keys * values).sum(), past


class Chat:
    past: Any = None
    total: Any = 0.0


ATTENTION, CHAT = Attention(), Chat()
MODELS: dict[str, nn.Module] = {}


def loss(x: torch.Tensor) -> torch.Tensor:
    """The loss of a model on the device of `x`."""
    result: torch.Tensor = MODELS[x.device.type](x).square().mean()
    return result


def samples(device: str, *shape: int) -> list[torch.Tensor]:
    """Two samples, of which the second has twice as many rows; and a model."""
    with VramSession(SessionOptions(device=device)).on_device():
        there = "cuda" if device != "cpu" else "cpu"
        MODELS[there] = nn.Sequential(nn.Linear(8, 16), nn.Sigmoid(), nn.Linear(16, 1)).to(there)
        return [torch.ones(*shape[:-1], rows, shape[-1], device=there) for rows in (3, 6)]


def grown(step: Step, given: list[Any], device: str = "cpu", holder: str = BY_GRAPH) -> tuple[float, list[Any]]:
    """Bytes a sample that the second of two laps keeps, and ways out for the lines that keep them, held by `holder`."""
    rerunnable = Rerunnable(step, given, device)
    with tracer_for(device) as tracer, cheap_collections():
        names = Names(tracer)
        for run in range(2 * len(given)):
            names.note(run_traced(tracer, rerunnable, run % len(given), run, owners=False), run)
        lines = [
            GrownLine(alive, sum(one.n_bytes for one in alive if one.run >= len(given)) / len(given), holder)
            for alive in by_line(tracer.alive()).values()
        ]
        rate = sum(line.rate for line in lines)
        found = suggested_for_growth(tracer, rerunnable, lines, names, 2 * len(given), round(rate * len(given)))
    for kept in (KEPT, BY_NAME, vars(CHAT)):
        kept.clear()
    assert "no_suggestions" not in found
    return rate, found.get("suggestions", [])


def in_an_object(x: torch.Tensor) -> None:
    chat = Chat()
    chat.past = ATTENTION(x)[1]
    KEPT.append(chat)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("wasteful", "mended"),
    [
        (lambda x: KEPT.append(ATTENTION(x)), lambda x: KEPT.append(ATTENTION(x)[0])),
        (lambda x: BY_NAME.update({len(BY_NAME): ATTENTION(x)[1]}), lambda x: BY_NAME.update({1: len(ATTENTION(x))})),
        (in_an_object, lambda x: KEPT.append(Chat()) or ATTENTION(x)),
    ],
    ids=["list", "dictionary", "attribute"],
)
def test_cache_of_every_request(wasteful: Step, mended: Step, device: str) -> None:
    """Caches that are kept and that no later request reads: without them, growth is less by what it says."""
    inference = torch.inference_mode()
    before, (suggestion,) = grown(inference(wasteful), samples(device, 1, 8), device)
    after, none = grown(inference(mended), samples(device, 1, 8), device)
    assert none == []
    assert suggestion["pattern"] == "cache of every request"
    assert suggestion["saves_bytes_per_sample"] == before - after == 4 * 4.5 * 8 * 4
    begin, _, end = suggestion["text"].partition("test_suggestions_of_growth.py:")
    assert begin.startswith("576 B a sample less: let go of the DynamicCache of a request that is answered (")
    assert end.endswith(" Attention.forward): 4 are kept, and no later request reads one")


def resumed(x: torch.Tensor) -> None:
    KEPT.append(ATTENTION(x, BY_NAME.setdefault(x.data_ptr(), DynamicCache())))


def looked_at(x: torch.Tensor) -> None:
    KEPT.append(ATTENTION(x)[1])
    [each.layers[0].keys.sum() for each in KEPT]


def looked_at_by_others(x: torch.Tensor) -> None:
    KEPT.append(ATTENTION(x)[1])
    [each.layers[0].keys.tolist() for each in KEPT]


def keys_kept_too(x: torch.Tensor) -> None:
    cache = ATTENTION(x)[1]
    KEPT.append((cache, [(layer.keys, layer.values) for layer in cache.layers]))


def view_kept_too(x: torch.Tensor) -> None:
    cache = ATTENTION(x)[1]
    KEPT.append((cache, [(layer.keys[0], layer.values[0]) for layer in cache.layers]))


def array_kept_too(x: torch.Tensor) -> None:
    cache = ATTENTION(x)[1]
    KEPT.append((cache, [(layer.keys.numpy(), layer.values.numpy()) for layer in cache.layers]))


@pytest.mark.parametrize(
    "step",
    [
        resumed,
        looked_at,
        looked_at_by_others,
        keys_kept_too,
        view_kept_too,
        array_kept_too,
        lambda x: ATTENTION(x, BY_NAME.setdefault("one", DynamicCache())),
        lambda x: KEPT.append(ATTENTION(x)[1].layers[0].keys),
        lambda x: KEPT.append(x * 2),
    ],
    ids=["resumed", "read", "tolist", "keys too", "view too", "array too", "one for all", "keys alone", "no cache"],
)
def test_no_cache_that_is_needed(step: Step) -> None:
    """Caches that a later sample reads, by whatever way; keys that something else keeps too; other tensors."""
    growth, none = grown(torch.inference_mode()(step), samples("cpu", 1, 8), holder="")
    assert growth > 0
    assert none == []


def test_no_cache_that_a_graph_keeps_too() -> None:
    """Keys and values that a graph of the result has saved: without the cache or without the graph, they stay."""
    weight = torch.ones(1, 1, 8, requires_grad=True)
    growth, none = grown(lambda x: KEPT.append(ATTENTION(x * weight)), samples("cpu", 1, 8))
    assert growth > 0
    assert none == []


def test_no_cache_where_autograd_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph may keep keys too, whatever the counts of references say; and so it is where the lap raised."""
    for lap in (Lap(0, frozenset(), recorded=True, backward=False), None):
        monkeypatch.setattr(suggested, "_lap", lambda *_, lap=lap: lap)
        assert grown(torch.inference_mode()(in_an_object), samples("cpu", 1, 8), holder="")[1] == []


def append_graph(x: torch.Tensor) -> None:
    KEPT.append(loss(x))


def add_graph(x: torch.Tensor) -> None:
    CHAT.total = CHAT.total + loss(x)


def add_detached(x: torch.Tensor) -> None:
    CHAT.total = CHAT.total + loss(x).detach()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("wasteful", "mended"),
    [
        (append_graph, lambda x: KEPT.append(loss(x).detach())),
        (append_graph, torch.no_grad()(append_graph)),
        (add_graph, add_detached),
    ],
    ids=["appended", "without a graph", "added up"],
)
def test_graph_of_every_sample(wasteful: Step, mended: Step, device: str) -> None:
    """A loss that is kept with its graph: detached, growth is less by what it says, and so it is under `no_grad`."""
    before, (suggestion,) = grown(wasteful, samples(device, 8), device)
    after, none = grown(mended, samples(device, 8), device, holder="")
    assert none == []
    assert suggestion["pattern"] == "graph of every sample"
    assert suggestion["saves_bytes_per_sample"] == before - after > 0
    text = suggestion["text"].removeprefix("about ")
    assert text.startswith(f"{before - after:,.0f} B a sample less: run the step under `torch.no_grad()`, or keep `")
    assert text.endswith(" of every sample hangs on list `KEPT` (4 items), and no backward pass runs")


def trained_beside(x: torch.Tensor) -> None:
    loss(x).backward()
    MODELS["cpu"].zero_grad()
    KEPT.append(loss(x))


def needed(x: torch.Tensor) -> None:
    kept = loss(x)
    if not kept.requires_grad:
        raise ValueError("mine")
    KEPT.append(kept)


@pytest.mark.parametrize(
    "step",
    [trained_beside, needed, torch.enable_grad()(append_graph), torch.no_grad()(append_graph)],
    ids=["trained", "needed", "grad enabled", "no graph"],
)
def test_no_graph_that_may_be_needed(step: Step) -> None:
    """A step that runs a backward pass, or raises without a graph; one that records whatever is said; no graph."""
    growth, none = grown(step, samples("cpu", 8))
    assert growth > 0
    assert none == []


def test_no_graph_that_no_name_holds() -> None:
    """Who holds it is not known: nobody could say what to detach."""
    assert grown(append_graph, samples("cpu", 8), holder="list `KEPT`")[1] == []
    loose = "autograd graph (PowBackward0) of a tensor that no Python object holds"
    assert grown(append_graph, samples("cpu", 8), holder=loose)[1] == []


def test_an_error_is_a_gap_of_the_explanation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern that raises: the verdict, the lines and the holders stay, and the reason is said."""

    def broken(_: Any) -> Any:
        raise ValueError("mine")

    session = VramSession(SessionOptions(device="cpu"))
    recording = session.replay(append_graph, samples("cpu", 8) * 5)
    monkeypatch.setattr(patterns, "OF_GROWTH", {"broken": broken})
    with pytest.raises(vram.MemoryGrowth, match="held by: "):
        session.assert_stable(recording)
    KEPT.clear()
    one = session.summary(recording)
    assert one.absent["suggestions for growth"] == "ValueError: mine"
    assert one.suggestions == []
