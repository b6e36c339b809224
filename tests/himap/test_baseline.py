"""With every mode off it is transformers' LLaMA: the same code, the same bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, LlamaModel

import himap.decoder
import himap.runs
from himap import Himap_LlamaModel, HimapLlamaForCausalLM
from tests.himap.models import Prompt, custom_on, golden_llama, himap_on

PROMPT = Prompt.golden("A")


@pytest.fixture
def plain() -> LlamaForCausalLM:
    return golden_llama(LlamaForCausalLM)


@pytest.fixture(params=["sdpa", "eager"])
def pair(
    llama: HimapLlamaForCausalLM, plain: LlamaForCausalLM, request: pytest.FixtureRequest
) -> tuple[HimapLlamaForCausalLM, LlamaForCausalLM]:
    """Ours and transformers' own, with the same weights and the same attention."""
    llama.set_attn_implementation(request.param)
    plain.set_attn_implementation(request.param)
    return llama, plain


def test_forward_is_the_base_class_forward(llama: HimapLlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every argument reaches LlamaModel.forward as it came, its result is returned as it is, nothing of ours runs."""
    calls: list[dict[str, Any]] = []
    result = object()
    monkeypatch.setattr(LlamaModel, "forward", lambda self, **kwargs: calls.append(kwargs) or result)
    for ours in ("rows_to_select", "Prefill", "Continuation"):
        monkeypatch.delattr(himap.decoder, ours)
    for ours in ("column_scores", "aggregate"):
        monkeypatch.delattr(himap.runs, ours)
    given = {name: object() for name in ("attention_mask", "position_ids", "past_key_values", "inputs_embeds")}
    given |= {"input_ids": None, "use_cache": True, "output_attentions": True}

    assert llama.model(**given, image_mask=PROMPT.image_mask) is result

    assert calls == [given]


@pytest.mark.parametrize("use_cache", [False, True])
def test_logits_bit_for_bit(pair: tuple[HimapLlamaForCausalLM, LlamaForCausalLM], use_cache: bool) -> None:
    """Logits equal plain transformers' to the last bit, in prefill and in the step after it."""
    prompt, step = PROMPT.embeds[:, :-1], PROMPT.embeds[:, -1:]

    ours, theirs = (model(inputs_embeds=prompt, use_cache=use_cache) for model in pair)

    assert torch.equal(ours.logits, theirs.logits)
    if use_cache:
        ours, theirs = (
            model(inputs_embeds=step, past_key_values=past.past_key_values)
            for model, past in zip(pair, (ours, theirs), strict=True)
        )
        assert torch.equal(ours.logits, theirs.logits)


@pytest.mark.parametrize("use_cache", [False, True])
def test_generation_token_for_token(pair: tuple[HimapLlamaForCausalLM, LlamaForCausalLM], use_cache: bool) -> None:
    """`generate` gives the tokens of plain transformers, and draws no random number."""
    ids = torch.tensor([[1, 17, 30, 99, 4]])
    state = torch.get_rng_state()

    ours, theirs = (model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=use_cache) for model in pair)

    assert torch.equal(ours, theirs)
    assert torch.equal(state, torch.get_rng_state())


def test_batches_and_padding_are_none_of_our_business(
    pair: tuple[HimapLlamaForCausalLM, LlamaForCausalLM],
) -> None:
    """The baseline takes what pruning refuses as plain transformers does."""
    ids = torch.tensor([[0, 0, 5, 6, 7], [9, 8, 7, 6, 5]])
    mask = (ids != 0).long()

    ours, theirs = (model(ids, attention_mask=mask) for model in pair)

    assert torch.equal(ours.logits, theirs.logits)


@pytest.mark.parametrize("switch_on", [himap_on, custom_on])
def test_flags_act_at_once(pair: tuple[HimapLlamaForCausalLM, LlamaForCausalLM], switch_on: Any) -> None:
    """A flag set on the config after the model was built acts in the next forward, on and off again."""
    ours, theirs = pair
    off = theirs(inputs_embeds=PROMPT.embeds, use_cache=False).logits

    switch_on(ours.config, PROMPT)
    on = ours(inputs_embeds=PROMPT.embeds, use_cache=False).logits
    assert not torch.equal(on[0, -1], off[0, -1])
    assert ours.model.kept is not None

    ours.config.use_hmap_v = ours.config.use_custom_selection = False
    assert torch.equal(ours(inputs_embeds=PROMPT.embeds, use_cache=False).logits, off)
    assert ours.model.kept is None


def test_nonsense_is_ignored_while_off(pair: tuple[HimapLlamaForCausalLM, LlamaForCausalLM]) -> None:
    """Flags that would be refused do no harm while their mode is off."""
    ours, theirs = pair
    himap_on(ours.config, attn_txt_layer=-3, attn_txt_rank="many", attn_img_layer=0, sys_length=2.5)
    custom_on(ours.config, kept_tokens=None, selection_method="magic", temperature=-1, first_index="no")
    ours.config.use_hmap_v = ours.config.use_custom_selection = False

    logits = ours(inputs_embeds=PROMPT.embeds, use_cache=False).logits

    assert torch.equal(logits, theirs(inputs_embeds=PROMPT.embeds, use_cache=False).logits)


def test_the_original_fix_works_literally(llama: HimapLlamaForCausalLM, plain: LlamaForCausalLM) -> None:
    """`config.use_hmap_v = False` and `model.reset_hmapv()` bring the baseline back, and drop what a run left."""
    himap_on(llama.config, PROMPT)
    llama(inputs_embeds=PROMPT.embeds, use_cache=False)
    model = llama
    assert model.model.kept is not None

    model.config.use_hmap_v = False
    model.model.reset_hmapv()

    assert model.model.kept is None
    logits = model(inputs_embeds=PROMPT.embeds, use_cache=True).logits
    assert torch.equal(logits, plain(inputs_embeds=PROMPT.embeds, use_cache=True).logits)


def test_resets_leave_the_flags(llama: HimapLlamaForCausalLM) -> None:
    """Both resets drop per-run state only: a mode that is on stays on."""
    custom_on(llama.config, PROMPT)
    llama(inputs_embeds=PROMPT.embeds, use_cache=False)

    llama.model.reset_custom_selection()

    assert llama.model.kept is None
    llama(inputs_embeds=PROMPT.embeds, use_cache=False)
    assert llama.model.kept is not None


def test_no_weights_of_our_own(llama: HimapLlamaForCausalLM, plain: LlamaForCausalLM) -> None:
    """Keys are plain transformers', and building one from a seed gives plain transformers' weights."""
    assert llama.state_dict().keys() == plain.state_dict().keys()

    torch.manual_seed(3)
    ours = HimapLlamaForCausalLM(llama.config).state_dict()
    torch.manual_seed(3)
    theirs = LlamaForCausalLM(llama.config).state_dict()

    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert isinstance(llama.model, Himap_LlamaModel)
