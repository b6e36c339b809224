"""Pieces of a peak: every byte of the recorded peak, found by its owner or where it was made."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vram
from vram.explanation.categories import Categories, tensors_in
from vram.explanation.modules import RunningModules, folded_path
from vram.explanation.peak import breakdown
from vram.session import SessionOptions, VramSession
from vram.summary.breakdown import Breakdown, Piece, from_json


def in_pieces(step: Callable[[Any], object], sample: Any, *, laps: int = 1) -> Breakdown:
    """The peak of a step, whose pieces add up to what was recorded."""
    recording = vram.replay(step, [sample], laps=laps)
    at_peak, why = breakdown(recording)
    assert at_peak is not None, why
    found = from_json(at_peak["breakdown"])
    assert found is not None
    assert sum(piece.n_bytes for piece in found.whole) == found.peak_bytes == recording.peak_bytes()
    assert (found.untraced_bytes, found.untraced) == (0, "")
    return found


def of(found: Breakdown, category: str) -> list[Piece]:
    """The pieces of a category that are this file's, or of no line."""
    return [piece for piece in found.pieces if piece.category == category]


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.bmm(torch.bmm(x, x.transpose(1, 2)).softmax(-1), x)


class Router(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 2).softmax(-1)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(Attention(), Router()) for _ in range(2))
        self.head = nn.Linear(16, 24)
        self.table: torch.Tensor
        self.register_buffer("table", torch.zeros(1, 40, 16))

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.table
        kept = [x]
        for layer in self.layers:
            kept.append(layer(kept[-1]))
        logits: torch.Tensor = self.head(torch.stack(kept))
        return logits.exp()


def test_owners_and_places() -> None:
    """Weights and buffers by their module; inputs, also those that are moved on their way; maps of attention, and not
    the router's softmax; logits and what is made of them; the rest of a forward is activations, in its module."""
    model = Model()

    @torch.inference_mode()
    def step(x: torch.Tensor) -> torch.Tensor:
        return model(x.clone())

    found = in_pieces(step, torch.zeros(1, 40, 16))
    assert [(piece.module, piece.shape) for piece in of(found, "weights") if piece.module] == [
        ("head", "[24, 16]"),
        ("head", "[24]"),
    ]
    assert [(piece.module, piece.n_bytes) for piece in of(found, "buffers") if piece.module] == [("Model", 40 * 16 * 4)]
    assert sorted(piece.op for piece in of(found, "inputs")) == ["", "aten.clone"]
    logits = {(piece.module, piece.op) for piece in of(found, "logits")}
    assert logits == {("head", "aten.addmm"), ("Model", "aten.exp")} or logits == {
        ("head", "aten.linear"),
        ("Model", "aten.exp"),
    }
    routers = [piece for piece in of(found, "activations") if piece.module == "layers.*.*"]
    assert [(piece.op, piece.count) for piece in routers] == [("aten._softmax", 2)]

    attention = Attention()
    maps = of(in_pieces(torch.inference_mode()(attention), torch.zeros(1, 40, 16)), "attention maps")
    assert [(piece.module, piece.shape) for piece in maps] == [("Attention", "[1, 40, 40]")] * 2


def test_inputs_that_were_there_before() -> None:
    """A tensor that a model is called with is an input even if the sample does not lead to it and it was made long
    before; what the model has made or owns, and what nobody passes it, is none."""
    model, batch, unused, masks = Model(), torch.zeros(1, 40, 16), torch.zeros(77), {"mask": torch.zeros(13, 3)}

    class Masked(nn.Module):
        def forward(self, x: torch.Tensor, table: torch.Tensor, masks: dict[str, torch.Tensor]) -> torch.Tensor:
            return x.sum() + table.sum() + masks["mask"].sum()

    @torch.inference_mode()
    def step(_: object) -> None:
        kept = model(batch)
        Masked()(kept, model.table, masks=masks)

    found = in_pieces(step, None)
    assert sorted(piece.shape for piece in of(found, "inputs")) == ["[1, 40, 16]", "[13, 3]"]
    assert unused.numel()


class Wrapper(nn.Module):
    """A model within another, as a LightningModule has one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"model": Model()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner["model"](x)
        return torch.cat([logits] * 3).sum()


def test_logits_of_a_model_within_another() -> None:
    """It names its output embeddings as it does alone: their output, and what both modules make of it, are logits."""
    found = in_pieces(torch.inference_mode()(Wrapper()), torch.zeros(1, 40, 16))
    logits = {(piece.module, piece.op) for piece in of(found, "logits")}
    assert logits == {("inner.model", "aten.exp"), ("Wrapper", "aten.cat")}


def test_training() -> None:
    """Gradients by their parameters, and on their way; what an optimizer keeps; all of it adds up."""
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
    optimizer = torch.optim.Adam(model.parameters(), foreach=False)

    def step(x: torch.Tensor) -> None:
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(torch.zeros(4, 32))
    found = in_pieces(step, torch.zeros(4, 32))
    n_bytes = 4 * (32 * 64 + 64 + 64 * 8 + 8)
    sums = found.by_category
    assert sums["optimizer state"] == 2 * n_bytes + 4 * 4  # two moments, and four counts of steps
    assert sums["gradients"] >= n_bytes
    assert sums["weights"] >= n_bytes
    assert not model[0].weight._post_accumulate_grad_hooks  # type: ignore[operator]


def test_caches_of_transformers() -> None:
    """Keys and values are those of a cache object, wherever they were made, with the layers that made them."""
    from tests.vram.zoo.tiny import llama

    model = llama(attn_implementation="sdpa")

    @torch.inference_mode()
    def step(ids: torch.Tensor) -> object:
        return model(ids, logits_to_keep=1).past_key_values

    found = in_pieces(step, torch.ones(1, 64, dtype=torch.int64))
    caches = of(found, "KV cache")
    assert sum(piece.n_bytes for piece in caches) == 2 * 2 * 64 * 32 * 4  # keys and values, layers, tokens, width
    assert {piece.module for piece in caches} == {"model.layers.*.self_attn"}


def test_the_simulated_card_adds_up(tmp_path: Path) -> None:
    """Blocks of the allocator: workspaces that libraries keep, and the scratch memory of a sort's kernels."""
    session = VramSession(SessionOptions(device="simulated:A100-40", breakdown="always", snapshots=tmp_path))
    with session.on_device():
        model = nn.Linear(64, 64).to("cuda:0")

    def step(n: int) -> object:
        with torch.inference_mode():
            return model(torch.rand(n, 64, device="cuda:0")).sort()

    summary = session.summary(session.replay(step, [500], laps=1))
    found = summary.breakdown
    assert found is not None
    assert (found.untraced_bytes, found.peak_bytes) == (0, summary.peak_bytes)
    assert {piece.op for piece in of(found, "library workspace")} == {"", "aten.empty"}
    assert [piece.module for piece in of(found, "activations")] == ["Linear"]


def test_declared_code_has_its_category(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allocations by functions of a module are what the project says they are; weights stay weights."""
    monkeypatch.setattr("vram.explanation.declared._modules", {})
    vram.categorize("pruning", __name__, "no.such.module")
    assert of(in_pieces(torch.inference_mode()(Router()), torch.zeros(4, 4)), "pruning")
    with pytest.raises(TypeError, match="categorize takes texts"):
        vram.categorize("pruning", 3)  # type: ignore[arg-type]


def test_a_rerun_that_differs_has_no_breakdown() -> None:
    """One that needs more than was recorded: the reason is said, and the lines are there all the same."""
    kept: list[torch.Tensor] = []
    recording = vram.replay(lambda n: kept.append(torch.zeros(n)), [64], laps=1)
    at_peak, why = breakdown(recording)
    assert at_peak is not None
    assert why == ""
    assert at_peak["lines"]
    assert "breakdown" not in at_peak
    assert at_peak["no_breakdown"] == "sample 0, run again with tracing, needed 256 B more than was recorded"


def test_a_rerun_that_needs_less_names_the_rest() -> None:
    """A cache that is filled once: the peak adds up, and what is not there any more is said to be so."""
    made: list[int] = []

    def step(n: int) -> torch.Tensor:
        made.append(n)
        return torch.zeros(n if len(made) > 1 else 3 * n)

    recording = vram.replay(step, [64], laps=3)
    at_peak, _ = breakdown(recording)
    assert at_peak is not None
    found = from_json(at_peak["breakdown"])
    assert found is not None
    assert (found.untraced_bytes, found.peak_bytes) == (2 * 64 * 4, recording.peak_bytes())
    assert found.untraced == "alive in the recorded peak, and not when the sample ran again"


def test_what_can_not_be_run_again_is_said() -> None:
    """A step that is gone, and one that raises: no breakdown, and why."""
    broken: list[int] = []

    def step(n: int) -> torch.Tensor:
        if broken:
            raise ValueError("mine")
        return torch.zeros(n)

    recording = vram.replay(step, [64], laps=3)
    broken.append(1)
    assert breakdown(recording) == (None, "the lines are not known: run again, sample 0 raised ValueError")
    model = nn.Linear(4, 4)
    recording = vram.replay(model, [torch.zeros(1, 4)], laps=3)
    vram.assert_stable(recording)
    del model
    gc.collect()
    assert breakdown(recording) == (None, "the step or its samples are gone")


def test_a_breakdown_changes_nothing() -> None:
    """Random numbers go on as if it had not been; no hook and no module is left, nor anything kept alive."""
    recording = vram.replay(lambda n: (torch.rand(n), random.random(), np.random.rand()), [64], laps=1)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    breakdown(recording)
    got = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    assert got == (torch.rand(1).item(), random.random(), np.random.rand())
    hooks = {name: each for name, each in vars(nn.modules.module).items() if name.startswith("_global_")}
    assert {"_global_forward_hooks", "_global_forward_pre_hooks", "_global_forward_hooks_with_kwargs"} <= hooks.keys()
    assert not any(hooks.values())


def test_compiled_modules_are_called_as_they_are() -> None:
    """A module that `torch.compile` has wrapped, whole or in part, has the paths that it has without."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8)))
    plain = in_pieces(torch.inference_mode()(model), torch.zeros(4, 8)).by_module
    compiled = torch.compile(model, backend="eager")
    assert in_pieces(torch.inference_mode()(compiled), torch.zeros(4, 8)).by_module == plain
    model[1] = torch.compile(model[1], backend="eager")
    assert in_pieces(torch.inference_mode()(model), torch.zeros(4, 8)).by_module == plain


@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
def test_modules_of_torchscript_are_followed() -> None:
    """Traced and scripted ones, which keep weights where no other module does."""
    plain = nn.Sequential(nn.Linear(16, 64))
    for script in (torch.jit.trace(plain, torch.zeros(4, 16)), torch.jit.script(plain)):  # type: ignore[no-untyped-call]
        found = in_pieces(torch.inference_mode()(script), torch.zeros(4, 16))
        weights = {(piece.module, piece.n_bytes) for piece in of(found, "weights") if piece.module}
        assert weights == {(f"{type(script).__name__}.*", size) for size in (16 * 64 * 4, 64 * 4)}


def test_code_of_a_model_that_raises_is_no_step_that_does() -> None:
    """A model that has no output embeddings may say so by an error: its sample runs again all the same."""

    class Headless(nn.Linear):
        def get_output_embeddings(self) -> nn.Module:
            raise NotImplementedError

    found = in_pieces(torch.inference_mode()(Headless(8, 8)), torch.zeros(4, 8))
    assert found.by_module == {"Headless": 4 * 8 * 4}


def test_paths_of_modules() -> None:
    """Indices are folded; a part that is called by itself keeps its path; one that is made on the way is its
    caller's; a forward that raises is left."""
    assert folded_path("model.layers.17.mlp") == "model.layers.*.mlp"
    assert folded_path("block2.0") == "block2.*"
    seen: list[str] = []

    class Leaf(nn.Module):
        def forward(self, fail: bool) -> None:
            seen.append(running.here()[0])
            if fail:
                raise ValueError("mine")

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.leaves = nn.ModuleList([Leaf()])

        def forward(self) -> None:
            self.leaves[0](False)
            Leaf()(False)

    running = RunningModules()
    root = Root()
    with running.following():
        root()
        root.leaves[0](False)
        with pytest.raises(ValueError, match="mine"):
            root.leaves[0](True)
        assert running.here() == ("", 0)
    assert seen == ["leaves.*", "Root.Leaf", "leaves.*", "leaves.*"]


def test_tensors_are_found_in_what_a_value_leads_to() -> None:
    """Containers and attributes, circles too; no modules, and no more than is there."""
    one, other = torch.zeros(1), torch.zeros(2)

    class Batch:
        def __init__(self) -> None:
            self.data = {"ids": [one], "self": self}

    assert list(tensors_in([Batch(), (other, None), nn.Linear(1, 1)])) == [other, one]
    assert list(tensors_in(3)) == []


def test_categories_keep_nothing() -> None:
    """A storage that nobody traced is nobody's."""
    categories = Categories(lambda _: None)
    with categories.following(torch.zeros(3)):
        nn.Linear(2, 2)(torch.zeros(1, 2))
    categories.find_owners()
    assert not categories._known
