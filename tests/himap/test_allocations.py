"""Baseline costs nothing, operation by operation: it allocates and frees what plain LLaVA does, in the same order."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from himap import HimapLlavaForConditionalGeneration
from himap.scoring import TILE_BYTES, column_scores
from tests.himap.models import TEXT, custom_on, himap_on, llava_inputs, plain_llava

Event = tuple[str, str, int]  # "new" or "free", the operation that made the storage, its bytes


class Allocations(TorchDispatchMode):
    """Every storage made inside, and every one freed, in order. Blind to scratch that a kernel frees itself."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            value.untyped_storage()._cdata for value in torch.utils._pytree.tree_leaves((args, kwargs)) if _real(value)
        }
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            if _real(value):
                storage = value.untyped_storage()
                if storage._cdata not in given | self._alive:
                    self._follow(func._schema.name, storage)
        return result

    def _follow(self, operation: str, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._alive.add(key)
        self.events.append(("new", operation, size))

        def freed() -> None:
            self._alive.discard(key)
            self.events.append(("free", operation, size))

        weakref.finalize(storage, freed)


def _real(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def allocations(work: Callable[[], object]) -> list[Event]:
    work()  # warmed up: what is made once is not a forward's
    with Allocations() as seen:
        work()
    return seen.events


def answer(model: Any, use_cache: bool) -> torch.Tensor:
    """Prefill and three decode steps."""
    ids: torch.Tensor = model.generate(**llava_inputs(), max_new_tokens=4, do_sample=False, use_cache=use_cache)
    return ids


@pytest.mark.share(5)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("after", [None, himap_on, custom_on])
def test_baseline_allocates_as_plain_llava_does(
    llava: HimapLlavaForConditionalGeneration, attention: str, use_cache: bool, after: Any
) -> None:
    """The same operations make the same bytes in the same order, prefill and decode, also after another mode ran."""
    plain = plain_llava(llava)
    for model in (llava, plain):
        model.set_attn_implementation(attention)
    if after is not None:
        after(llava.config, **({"attn_img_layer": 3} if after is himap_on else {}))
        answer(llava, use_cache)
        llava.config.use_hmap_v = llava.config.use_custom_selection = False

    ours, theirs = (allocations(lambda model=model: answer(model, use_cache)) for model in (llava, plain))

    assert len(theirs) > 100
    assert ours == theirs


@pytest.mark.parametrize("switch_on", [himap_on, custom_on])
def test_another_mode_is_seen(llava: HimapLlavaForConditionalGeneration, switch_on: Any) -> None:
    """The check above can fail: a mode that is on allocates otherwise."""
    off = allocations(lambda: answer(llava, True))
    switch_on(llava.config, **({"attn_img_layer": 3} if switch_on is himap_on else {}))

    assert allocations(lambda: answer(llava, True)) != off


@pytest.mark.parametrize("largest", [TILE_BYTES, 1000])
def test_scoring_takes_no_more_than_the_mlp(
    llava: HimapLlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    """The tile of both stages is what the layer's MLP makes of its tokens, or 32 MiB: scoring sets no peak."""
    tiles: list[int] = []

    def spied(*args: Any, tile_bytes: int, **options: Any) -> torch.Tensor:
        tiles.append(tile_bytes)
        return column_scores(*args, tile_bytes=tile_bytes, **options)

    monkeypatch.setattr("himap.runs.column_scores", spied)
    monkeypatch.setattr("himap.runs.TILE_BYTES", largest)
    himap_on(llava.config, attn_img_layer=3)
    llava(**llava_inputs())

    mlp_bytes = [tokens * TEXT["intermediate_size"] * 4 for tokens in (25, 25 - 16 + 12)]
    assert tiles == [min(largest, size) for size in mlp_bytes]


def test_one_more_byte_is_seen(llava: HimapLlavaForConditionalGeneration) -> None:
    """So is a single small tensor in one layer, made and dropped at once."""
    off = allocations(lambda: answer(llava, True))
    llava.model.language_model.layers[2].register_forward_pre_hook(lambda *_: torch.ones(1) and None)

    assert allocations(lambda: answer(llava, True)) != off


def test_a_storage_is_freed_when_its_tensor_is() -> None:
    """A tensor that is kept longer is seen so: frees stand in the order where tensors die, views included."""

    def work() -> None:
        first = torch.ones(4)
        view = first[1:]
        del first
        second = torch.zeros(2)
        del view
        del second

    assert allocations(work) == [
        ("new", "aten::ones", 16),
        ("new", "aten::zeros", 8),
        ("free", "aten::ones", 16),
        ("free", "aten::zeros", 8),
    ]
