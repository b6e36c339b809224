"""Layers that repeat: the requests that running each layer makes, to the byte; and what must be run."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vram.explanation.allocations import Describing
from vram.simulated.context import DEVICE, SimulatedCuda
from vram.simulated.repeated_layers import RepeatedLayers
from vram.simulated.trace import Recorder, Trace

pytestmark = pytest.mark.filterwarnings("ignore:simulated CUDA is tested with torch")


_RUNS: Counter[int] = Counter()  # of the code of each layer


class Layer(nn.Module):
    """Two products with a residual, and a cache of its own that grows by the hidden states."""

    def __init__(self, number: int, width: int = 64) -> None:
        super().__init__()
        self.layer_idx, self.factor, self.odd_rows = number, 1.0, 0
        self.first, self.second = nn.Linear(64, width), nn.Linear(width, 64)

    def forward(self, hidden: Tensor, bias: Tensor | None = None, cache: Any = None) -> Tensor:
        _RUNS[self.layer_idx] += 1
        if cache is not None:
            own = cache.parts[self.layer_idx]
            own.keys = hidden.clone() if own.keys is None else torch.cat([own.keys, hidden])
            own.length += 1
        torch.empty(self.odd_rows * (self.layer_idx % 2), 64, device=hidden.device)
        inner = self.second(nn.functional.gelu(self.first(hidden)))
        return hidden + (inner if bias is None else inner + bias)


@dataclass
class Stack:
    """Layers on a simulated card, watched or not, and what was recorded of each time they ran."""

    watched: bool
    cuda: SimulatedCuda = field(default_factory=lambda: SimulatedCuda("A10"))
    layers: list[Layer] = field(default_factory=list)
    traces: list[Trace] = field(default_factory=list)
    runs: list[int] = field(default_factory=list)  # of each layer's code

    def run(self, change: Callable[[Stack], object] | None = None, times: int = 1, **arguments: Any) -> Stack:
        """Run 6 layers `times` times, one after the other, `change`d before."""
        recorder = Recorder(self.cuda.allocator)
        _RUNS.clear()
        with self.cuda, torch.inference_mode():
            with torch.device(DEVICE):
                self.layers = [Layer(number) for number in range(6)]
            if change is not None:
                change(self)
            self.cuda.take_workspace()
            self.cuda.describe = Describing()
            if self.watched:
                layers = RepeatedLayers(self.cuda, recorder, lambda layer, given: _own(layer, given))
                layers.watch(self.layers)
            made = {name: make() for name, make in arguments.items()}
            recorder.cut()
            for _ in range(times):
                hidden = torch.ones(3, 64, device=DEVICE) * torch.rand(3, 64, device=DEVICE)
                for layer in self.layers:
                    hidden = layer(hidden, **made)
                del hidden
                self.traces.append(recorder.cut())
            del made
            self.traces.append(recorder.cut())
        self.runs = [_RUNS[number] for number in range(6)]
        return self


def _own(layer: Any, given: dict[str, Any]) -> object:
    cache = given.get("cache")
    return None if cache is None else cache.parts[layer.layer_idx]


class Cache:
    """A part for each layer."""

    def __init__(self) -> None:
        self.parts = [SimpleNamespace(keys=None, length=0) for _ in range(6)]


def contents(stack: Stack) -> list[Any]:
    gc.collect()
    return [(trace.ops, trace.others, trace.streams, trace.tags) for trace in stack.traces]


def both(change: Callable[[Stack], object] | None = None, times: int = 1, **arguments: Any) -> Stack:
    """The stack whose layers were watched, after it requested what one did whose layers were not."""
    watched, plain = (Stack(watched).run(change, times, **arguments) for watched in (True, False))
    assert plain.runs == [times] * 6
    assert contents(watched) == contents(plain)
    assert watched.cuda.allocator.stats == plain.cuda.allocator.stats
    return watched


def test_layers_alike_are_run_twice_and_then_repeated() -> None:
    """The same requests, with the same lines and shapes; the code of two layers ran."""
    assert both(bias=lambda: torch.rand(64, device=DEVICE)).runs == [1, 1, 0, 0, 0, 0]


def test_a_cache_grows_as_if_each_layer_had_run() -> None:
    """Its tensors, which each layer frees and makes longer, and its numbers; each time two layers are compared."""
    caches = []

    def cache() -> Cache:
        caches.append(Cache())
        return caches[-1]

    assert both(times=3, cache=cache).runs == [3, 3, 0, 0, 0, 0]
    for each in caches:
        assert [(own.length, tuple(own.keys.shape)) for own in each.parts] == [(3, (9, 64))] * 6


def hooked(stack: Stack) -> None:
    kept: list[Tensor] = []
    stack.layers[3].first.register_forward_hook(lambda *seen: kept.append(seen[2]))


def keeping(stack: Stack) -> None:
    kept: list[Tensor] = []
    for layer in stack.layers:
        layer.second.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))


def wider(stack: Stack) -> None:
    with torch.device(DEVICE):
        stack.layers[3] = Layer(3, width=128)


def set_otherwise(stack: Stack) -> None:
    stack.layers[3].factor = 2.0


def in_training(stack: Stack) -> None:
    stack.layers[3].second.train(not stack.layers[3].second.training)


def alternating(stack: Stack) -> None:
    for layer in stack.layers:
        layer.odd_rows = 9


def reading(stack: Stack) -> None:
    """An assumption is made in each layer, whose line a remark has."""
    for layer in stack.layers:
        layer.second.register_forward_hook(lambda *seen: seen[2].argmax().item() and None)


@pytest.mark.parametrize(
    ("change", "runs"),
    [
        (hooked, [1, 1, 0, 1, 1, 1]),
        (wider, [1, 1, 0, 1, 1, 1]),
        (set_otherwise, [1, 1, 0, 1, 1, 1]),
        (in_training, [1, 1, 0, 1, 1, 1]),
        (keeping, [1] * 6),
        (alternating, [1] * 6),
        (reading, [1] * 6),
    ],
)
def test_a_layer_that_is_not_alike_is_run(change: Callable[[Stack], object], runs: list[int]) -> None:
    """Another shape, setting or hook; tensors that are kept elsewhere; other requests by number; assumed values."""
    assert both(change).runs == runs


def test_other_arguments_are_run() -> None:
    """Equal tensors are not the same, and a layer's hidden states of another shape need others."""
    stack = Stack(watched=True).run()
    with stack.cuda, torch.inference_mode():
        layer, hidden = stack.layers[0], torch.rand(5, 64, device=DEVICE)
        bias = torch.rand(64, device=DEVICE)
        for given in (bias, bias, bias, bias.clone(), bias):
            hidden = layer(hidden, given)
        assert _RUNS[0] == 1 + 4  # the third time was a repetition
        layer(layer(torch.rand(6, 64, device=DEVICE), bias)[:5], bias)
        assert _RUNS[0] == 1 + 4 + 2


def test_a_tensor_of_a_cache_with_another_owner_is_an_error() -> None:
    """Its memory would not be free where running the layer had freed it."""
    cache = Cache()
    stack = Stack(watched=True).run(cache=lambda: cache)
    held = cache.parts[4].keys
    with stack.cuda, torch.inference_mode():
        hidden = torch.rand(3, 64, device=DEVICE)
        for layer in stack.layers[:4]:
            hidden = layer(hidden, cache=cache)
        with pytest.raises(RuntimeError, match="a layer's state must alone own its tensors"):
            stack.layers[4](hidden, cache=cache)
    assert held.shape == (3, 64)
