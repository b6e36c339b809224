"""Compiled layers, decoders and models choose as eager ones do, whichever flags they were compiled with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from himap import HimapLlamaForCausalLM
from tests.himap.models import LOGITS, Prompt, fastv_on, golden_llama, himap_on

PROMPT, SHORT = Prompt.golden("A"), Prompt.golden("B")


def layers(model: Any, **how: Any) -> None:
    for layer in model.model.layers:
        layer.compile(**how)


def attentions(model: Any, **how: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.compile(**how)


def forwards(model: Any, **how: Any) -> None:
    for layer in model.model.layers:
        layer.forward = torch.compile(layer.forward, **how)


def decoder(model: Any, **how: Any) -> None:
    model.model.compile(**how)


def whole(model: Any, **how: Any) -> None:
    model.compile(**how)


@pytest.fixture(autouse=True)
def _no_compiled_code_before_or_after() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def runs(model: HimapLlamaForCausalLM) -> Iterator[tuple[list[list[int]], torch.Tensor]]:
    """Kept tokens and logits of one setting after the other; the last on another length."""
    himap_on(model.config, PROMPT)
    yield answer(model, PROMPT)
    himap_on(model.config, PROMPT, attn_txt_rank=3, attn_img_layer=None, attn_img_rank=None)
    yield answer(model, PROMPT)
    himap_on(model.config, PROMPT, attn_txt_layer=1, attn_txt_rank=5, attn_img_layer=2)
    yield answer(model, PROMPT)
    model.config.use_hmap_v = False
    fastv_on(model.config, SHORT)
    yield answer(model, SHORT)


def answer(model: HimapLlamaForCausalLM, prompt: Prompt) -> tuple[list[list[int]], torch.Tensor]:
    logits = model(inputs_embeds=prompt.embeds, use_cache=False).logits
    assert model.model.kept is not None
    return [row.tolist() for rows in vars(model.model.kept).values() for row in rows or ()], logits


@pytest.mark.parametrize(
    ("compile_", "whole_graphs"),
    [
        (layers, True),
        (attentions, False),
        *(pytest.param(compile_, False, marks=pytest.mark.full) for compile_ in (layers, forwards, decoder, whole)),
    ],
)
def test_compiled_code_chooses_as_eager_code(compile_: Callable[..., None], whole_graphs: bool) -> None:
    """Compiled layer by layer, or as a whole: no score of an earlier forward is used, and none is missing.

    Takes over 5 s, since each layer is compiled anew; what takes a minute is left to --full.
    """
    expected = runs(golden_llama(HimapLlamaForCausalLM))
    model = golden_llama(HimapLlamaForCausalLM)
    compile_(model, backend="eager", fullgraph=whole_graphs)
    for (kept, logits), (expected_kept, expected_logits) in zip(runs(model), expected, strict=True):
        assert kept == expected_kept
        torch.testing.assert_close(logits, expected_logits, **LOGITS)


def test_a_layer_with_another_attention_is_scored(
    llama: HimapLlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attention that does not call its projections as modules, as fused kernels do, is scored all the same."""
    himap_on(llama.config, PROMPT)
    expected = answer(llama, PROMPT)
    for layer in llama.model.layers:
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            monkeypatch.setattr(projection, "register_forward_hook", torch.nn.Linear(1, 1).register_forward_hook)
    kept, logits = answer(llama, PROMPT)
    assert kept == expected[0]
    assert torch.equal(logits, expected[1])
