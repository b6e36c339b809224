"""HiMAP and `custom_drop` with a KV cache: chosen once, kept with the cache, right for every layer's own length."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache
from transformers.cache_utils import DynamicLayer

import himap.runs
from himap import HimapLlamaForCausalLM
from tests.himap.models import LAYERS, Prompt, custom_on, himap_on, watched_layers

PROMPT = Prompt.golden("A")  # 5 system, 24 image, 9 text tokens
CLOSE = {"atol": 2e-5, "rtol": 0.0}

removing = pytest.mark.parametrize(
    ("switch_on", "flags"),
    [
        (himap_on, {}),
        (himap_on, {"attn_txt_layer": 1, "attn_img_layer": 2}),
        (himap_on, {"attn_img_layer": None, "attn_img_rank": None}),
        (himap_on, {"attn_txt_rank": 6, "attn_img_rank": 0}),
        (custom_on, {"drop": True}),
        (custom_on, {"drop": True, "agg_layer": 0, "selection_method": "fps", "first_index": 3}),
    ],
    ids=["himap", "adjacent stages", "text stage only", "no image left", "drop", "drop in the first layer"],
)


@pytest.fixture(params=["sdpa", "eager"])
def model(llama: HimapLlamaForCausalLM, request: pytest.FixtureRequest) -> HimapLlamaForCausalLM:
    llama.set_attn_implementation(request.param)
    return llama


def embedded(model: HimapLlamaForCausalLM, *ids: int) -> Tensor:
    embeds = model.get_input_embeddings()(torch.tensor([ids]))
    assert isinstance(embeds, Tensor)
    return embeds


def on_cache(model: HimapLlamaForCausalLM, cache: DynamicCache, embeds: Tensor, **kwargs: Any) -> Tensor:
    logits = model(inputs_embeds=embeds, past_key_values=cache, use_cache=True, **kwargs).logits[0]
    assert isinstance(logits, Tensor)
    return logits


@contextmanager
def choosing_as(model: HimapLlamaForCausalLM) -> Iterator[None]:
    """Whatever the scores, HiMAP keeps what `model` kept last. (Custom selection looks at the image alone.)"""
    kept = model.model.kept
    choices = [one[0] for one in (kept.txt, kept.img) if one is not None]

    def choose(scores: Tensor, keep: int) -> Tensor:
        # The second stage chooses among what the first one kept.
        return choices[0] if len(scores) == PROMPT.img else torch.isin(choices[0], choices[1]).nonzero().squeeze(1)

    original, himap.runs.top_tokens = himap.runs.top_tokens, choose
    try:
        yield
    finally:
        himap.runs.top_tokens = original


def recomputed(model: HimapLlamaForCausalLM, embeds: Tensor, last: int) -> Tensor:
    """Logits of the `last` tokens, computed anew without a cache but with the choice of the last forward."""
    with choosing_as(model):
        logits = model(inputs_embeds=embeds, use_cache=False).logits[0, -last:]
    assert isinstance(logits, Tensor)
    return logits


@removing
def test_every_layer_has_its_own_length(llama: HimapLlamaForCausalLM, switch_on: Any, flags: dict[str, Any]) -> None:
    """A layer's cache holds what went into that layer, no token more."""
    switch_on(llama.config, PROMPT, **flags)
    cache = DynamicCache()

    with watched_layers(llama.model) as watched:
        on_cache(llama, cache, PROMPT.embeds)

    assert [cache.get_seq_length(layer) for layer in range(LAYERS)] == watched.lengths
    assert watched.lengths[-1] < PROMPT.length


@removing
def test_token_by_token(model: HimapLlamaForCausalLM, switch_on: Any, flags: dict[str, Any]) -> None:
    """Each new token's logits are those of computing all anew with the same tokens kept; so are the prompt's."""
    switch_on(model.config, PROMPT, **flags)
    cache, ids = DynamicCache(), [7, 99, 41, 3]
    first = on_cache(model, cache, PROMPT.embeds)
    kept = model.model.kept
    assert torch.allclose(first, recomputed(model, PROMPT.embeds, first.shape[0]), **CLOSE)

    for count in range(1, len(ids) + 1):
        logits = on_cache(model, cache, embedded(model, ids[count - 1]))

        assert model.model.kept is kept
        everything = torch.cat([PROMPT.embeds, embedded(model, *ids[:count])], dim=1)
        assert torch.allclose(logits, recomputed(model, everything, 1), **CLOSE)


@removing
def test_several_tokens_a_crop_and_a_second_turn(
    model: HimapLlamaForCausalLM, switch_on: Any, flags: dict[str, Any]
) -> None:
    """Several query tokens at once, tokens taken back, and a second turn of text: always as computed anew."""
    switch_on(model.config, PROMPT, **flags)
    cache = DynamicCache(config=model.config)
    on_cache(model, cache, PROMPT.embeds)
    said = [7, 99, 41, 3, 8]
    everything = torch.cat([PROMPT.embeds, embedded(model, *said)], dim=1)
    logits = on_cache(model, cache, embedded(model, *said))
    assert torch.allclose(logits, recomputed(model, everything, 5), **CLOSE)

    on_cache(model, cache, embedded(model, 11))  # restores what `recomputed` kept last
    cache.crop(-4)
    turn = [50, 51, 52]
    everything = torch.cat([PROMPT.embeds, embedded(model, *said[:2], *turn)], dim=1)
    logits = on_cache(model, cache, embedded(model, *turn))
    assert torch.allclose(logits, recomputed(model, everything, 3), **CLOSE)


def test_a_crop_into_the_question(llama: HimapLlamaForCausalLM) -> None:
    """The question may be taken back and another asked: the image stays as the first one chose it."""
    himap_on(llama.config, PROMPT)
    cache = DynamicCache()
    on_cache(llama, cache, PROMPT.embeds)
    cache.crop(-9)

    logits = on_cache(llama, cache, embedded(llama, 60, 61))

    everything = torch.cat([PROMPT.embeds[:, :29], embedded(llama, 60, 61)], dim=1)
    assert torch.allclose(logits, recomputed(llama, everything, 2), **CLOSE)


def test_positions_go_on(llama: HimapLlamaForCausalLM) -> None:
    """A new token stands where it would in the whole prompt, whatever was removed; given positions are obeyed."""
    custom_on(llama.config, PROMPT, drop=True, agg_layer=0)
    cache = DynamicCache()
    on_cache(llama, cache, PROMPT.embeds)

    with watched_layers(llama.model) as watched:
        on_cache(llama, cache, embedded(llama, 7))
        on_cache(llama, cache, embedded(llama, 7), position_ids=torch.tensor([[77]]))

    for layer, position in ((0, 38), (LAYERS, 77)):
        cosines = llama.model.rotary_emb(PROMPT.embeds, position_ids=torch.tensor([[position]]))[0]
        assert torch.equal(watched.cosines[layer], cosines)


def test_no_mask_for_one_token_under_sdpa(llama: HimapLlamaForCausalLM) -> None:
    """One token on an unpadded cache needs no mask in any layer, also where `generate` hands a mask of ones."""
    himap_on(llama.config, PROMPT)
    cache = DynamicCache()
    on_cache(llama, cache, PROMPT.embeds, attention_mask=torch.ones(1, 38))

    with watched_layers(llama.model) as watched:
        on_cache(llama, cache, embedded(llama, 7), attention_mask=torch.ones(1, 39))

    assert watched.masks == [None] * LAYERS


def test_the_choice_belongs_to_the_cache(llama: HimapLlamaForCausalLM) -> None:
    """Two conversations in turn, a copy of one, and flags changed meanwhile: each goes on with its own choice."""
    himap_on(llama.config, PROMPT)
    other = Prompt(PROMPT.embeds.flip(1), 9, 24)
    caches = DynamicCache(), DynamicCache()
    on_cache(llama, caches[0], PROMPT.embeds)
    expected = on_cache(llama, copy.deepcopy(caches[0]), embedded(llama, 7, 8))
    mine = llama.model.kept
    himap_on(llama.config, other, attn_txt_layer=1, attn_txt_rank=5)
    on_cache(llama, caches[1], other.embeds)
    assert [one.tolist() for one in llama.model.kept.txt] != [one.tolist() for one in mine.txt]

    logits = on_cache(llama, caches[0], embedded(llama, 7, 8))

    assert torch.equal(logits, expected)
    assert llama.model.kept is not mine  # the copy's; the same choice
    assert llama.model.kept.txt[0].tolist() == mine.txt[0].tolist()


@pytest.mark.parametrize("empty", [lambda cache: cache.crop(-PROMPT.length), lambda cache: cache.reset()])
def test_an_emptied_cache_starts_anew(llama: HimapLlamaForCausalLM, empty: Any) -> None:
    """After all was cropped away, or reset, the next prompt chooses for itself, as it does on a fresh cache."""
    himap_on(llama.config, PROMPT)
    cache = DynamicCache()
    on_cache(llama, cache, PROMPT.embeds.flip(1))
    empty(cache)
    if cache.get_seq_length():
        pytest.skip("this transformers fills a cache with zeros when it is reset, and leaves its length")

    logits = on_cache(llama, cache, PROMPT.embeds)

    assert torch.equal(logits, on_cache(llama, DynamicCache(), PROMPT.embeds))
    assert cache.get_seq_length(LAYERS - 1) == 17


class _Lossy(DynamicLayer):
    """Gives back other keys than it was given, as quantised caches do."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        return keys * 0.5, values


def test_a_cache_that_changes_keys(llama: HimapLlamaForCausalLM) -> None:
    """The choice is made by the model's own keys, not by what such a cache makes of them."""
    himap_on(llama.config, PROMPT, attn_txt_layer=1, attn_img_layer=None, attn_img_rank=None)
    on_cache(llama, DynamicCache(), PROMPT.embeds)
    expected = llama.model.kept.txt[0].tolist()

    on_cache(llama, Cache(layer_class_to_replicate=_Lossy), PROMPT.embeds)

    assert llama.model.kept.txt[0].tolist() == expected


@pytest.mark.parametrize("beams", [1, 3])
def test_generate_on_a_cache(llama: HimapLlamaForCausalLM, beams: int) -> None:
    """Where text has no say in the choice, greedy and beam search give the tokens of computing all anew."""
    custom_on(llama.config, PROMPT, drop=True)
    ids = torch.randint(3, 128, (2, PROMPT.length), generator=torch.Generator().manual_seed(2))

    cached, anew = (
        llama.generate(ids, max_new_tokens=8, do_sample=False, num_beams=beams, use_cache=use_cache)
        for use_cache in (True, False)
    )

    assert cached.tolist() == anew.tolist()


@removing
def test_generate_goes_on(llama: HimapLlamaForCausalLM, switch_on: Any, flags: dict[str, Any]) -> None:
    """A second `generate`, given the whole conversation and the cache, says what one long answer would have."""
    switch_on(llama.config, PROMPT, **flags)
    ids = torch.randint(3, 128, (1, PROMPT.length), generator=torch.Generator().manual_seed(2))
    options = {"do_sample": False, "return_dict_in_generate": True}
    long = llama.generate(ids, max_new_tokens=8, **options).sequences

    first = llama.generate(ids, max_new_tokens=3, **options)
    second = llama.generate(first.sequences, past_key_values=first.past_key_values, max_new_tokens=5, **options)

    assert second.sequences.tolist() == long.tolist()


class TestRefusals:
    """Each is a ValueError that says the rule, then what came."""

    @pytest.mark.parametrize("switch_on", [himap_on, custom_on])
    def test_a_static_cache(self, llama: HimapLlamaForCausalLM, switch_on: Any) -> None:
        """A cache whose layers all have one length, given or asked of `generate`."""
        switch_on(llama.config, PROMPT)
        with pytest.raises(ValueError, match="needs a DynamicCache or none, got StaticCache"):
            on_cache(llama, StaticCache(config=llama.config, max_cache_len=64), PROMPT.embeds)
        with pytest.raises(ValueError, match="needs a DynamicCache or none, got StaticCache"):
            llama.generate(torch.full((1, 38), 9), max_new_tokens=2, do_sample=False, cache_implementation="static")

    @pytest.mark.parametrize("given", [True, False])
    def test_sliding_layers(self, llama: HimapLlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
        """A cache that forgets, given or made because the config asks for one."""
        himap_on(llama.config, PROMPT)
        monkeypatch.setattr(llama.config, "sliding_window", 8, raising=False)
        cache = DynamicCache(config=llama.config) if given else None
        with pytest.raises(ValueError, match="needs a DynamicCache or none, got DynamicCache with sliding layers"):
            llama(inputs_embeds=PROMPT.embeds, past_key_values=cache, use_cache=True)

    @pytest.mark.parametrize("switch_on", [himap_on, custom_on])
    def test_modes_off_on_their_cache(self, llama: HimapLlamaForCausalLM, switch_on: Any) -> None:
        """A cache that a mode filled is not the baseline's, until it is empty again."""
        switch_on(llama.config, PROMPT)
        cache = DynamicCache()
        on_cache(llama, cache, PROMPT.embeds)
        llama.config.use_hmap_v = llama.config.use_custom_selection = False
        with pytest.raises(ValueError, match="must not be used with every mode off"):
            on_cache(llama, cache, embedded(llama, 7))
        cache.crop(-PROMPT.length)
        assert on_cache(llama, cache, PROMPT.embeds).shape[0] == PROMPT.length
        assert on_cache(llama, cache, embedded(llama, 7)).shape[0] == 1

    def test_a_crop_into_the_image(self, llama: HimapLlamaForCausalLM) -> None:
        """The rest of the choice would be anyone's guess."""
        himap_on(llama.config, PROMPT)
        cache = DynamicCache()
        on_cache(llama, cache, PROMPT.embeds)
        cache.crop(-10)
        with pytest.raises(ValueError, match="image, which ends at token 29, got one cropped to 28"):
            on_cache(llama, cache, embedded(llama, 7))

    def test_layers_that_do_not_fit_together(self, llama: HimapLlamaForCausalLM) -> None:
        """Layers cut to one length, which is not what they have in common."""
        himap_on(llama.config, PROMPT)
        cache = DynamicCache()
        on_cache(llama, cache, PROMPT.embeds)
        for layer in cache.layers:
            layer.crop(min(0, 30 - layer.get_seq_length()))
        with pytest.raises(ValueError, match="layer 2 of a pruned cache must hold 18 of 30 tokens, got 26"):
            on_cache(llama, cache, embedded(llama, 7))

    @pytest.mark.parametrize("length", [1, 18, 38, 40])
    def test_an_attention_mask_of_another_length(self, llama: HimapLlamaForCausalLM, length: int) -> None:
        """The mask counts the whole prompt, not what was left of it."""
        himap_on(llama.config, PROMPT)
        cache = DynamicCache()
        on_cache(llama, cache, PROMPT.embeds)
        with pytest.raises(ValueError, match=rf"all tokens so far \[1, 39\], got \[1, {length}\]"):
            on_cache(llama, cache, embedded(llama, 7), attention_mask=torch.ones(1, length))

    @pytest.mark.parametrize("switch_on", [himap_on, custom_on])
    @pytest.mark.parametrize("masked", [True, False])
    @pytest.mark.parametrize("first", [3, 17])
    def test_a_prefill_in_chunks(self, llama: HimapLlamaForCausalLM, switch_on: Any, masked: bool, first: int) -> None:
        """A prompt that comes piece by piece: its image's choice needs all of it."""
        switch_on(llama.config, None if masked else PROMPT)
        cache, mask = DynamicCache(), PROMPT.image_mask
        masks = [{"image_mask": mask[:, :first]}, {"image_mask": mask[:, first:]}] if masked else [{}, {}]

        def chunk_by_chunk() -> None:
            on_cache(llama, cache, PROMPT.embeds[:, :first], **masks[0])
            on_cache(llama, cache, PROMPT.embeds[:, first:], **masks[1])

        with pytest.raises(ValueError, match=r"must come with the first forward on a cache|needs text after the image"):
            chunk_by_chunk()

    def test_a_second_image(self, llama: HimapLlamaForCausalLM) -> None:
        """A later turn with an image of its own."""
        himap_on(llama.config)
        cache = DynamicCache()
        on_cache(llama, cache, PROMPT.embeds, image_mask=PROMPT.image_mask)
        with pytest.raises(ValueError, match="first forward on a cache, got one with 38 tokens"):
            on_cache(llama, cache, PROMPT.embeds, image_mask=PROMPT.image_mask)

    @pytest.mark.parametrize("option", ["prefill_chunk_size", "prompt_lookup_num_tokens", "assistant_early_exit"])
    def test_generate_that_splits_or_guesses(self, llama: HimapLlamaForCausalLM, option: str) -> None:
        """Chunked prefill, and speculation, whose guesses would be scored as text; with the modes off both are fine."""
        ids = torch.full((1, 38), 9)
        expected = llama.generate(ids, max_new_tokens=3, do_sample=False, **{option: 2})
        assert expected.shape == (1, 41)
        himap_on(llama.config, PROMPT)
        with pytest.raises(ValueError, match=f"{option} must be None while image tokens are selected .*, got 2"):
            llama.generate(ids, max_new_tokens=3, do_sample=False, **{option: 2})
        config = copy.deepcopy(llama.generation_config)
        setattr(config, option, 2)
        with pytest.raises(ValueError, match=f"{option} must be None"):
            llama.generate(ids, config, max_new_tokens=3)

    def test_an_assistant(self, llama: HimapLlamaForCausalLM) -> None:
        """A model that guesses ahead."""
        himap_on(llama.config, PROMPT)
        with pytest.raises(ValueError, match=r"assistant_model must be None .*, got HimapLlamaForCausalLM"):
            llama.generate(torch.full((1, 38), 9), assistant_model=llama)
