"""Left-padded batches: each row makes its own choice and is answered as if it were alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from himap import HimapLlamaForCausalLM, HimapLlavaForConditionalGeneration
from tests.himap.models import IMAGE_TOKEN, IMAGE_TOKENS, custom_on, himap_on

CLOSE = {"atol": 2e-5, "rtol": 0.0}
# Padded rows are summed in another order (and SDPA takes another kernel): in float32 the last digits differ by the
# processor, and custom selection divides by its temperature (default 0.1), which enlarges that. So SDPA is compared in
# float64 at the default, and eager attention in float32 at a temperature of 1.
CLOSE_IN = {torch.float32: CLOSE, torch.float64: {"atol": 1e-9, "rtol": 0.0}}

EVEN = defaultdict[Any, dict[str, float]](dict, {(custom_on, torch.float32): {"temperature": 1.0}})

selecting = pytest.mark.parametrize(
    ("switch_on", "flags"),
    [
        (himap_on, {}),
        (himap_on, {"attn_txt_layer": 1, "attn_img_layer": 2, "attn_img_rank": 0}),
        (custom_on, {}),
        (custom_on, {"selection_method": "fps", "first_index": 4}),
        (custom_on, {"drop": True}),
        (custom_on, {"drop": True, "agg_layer": 0, "selection_method": "fps", "first_index": 4}),
    ],
    ids=["himap", "himap adjacent", "tome", "fps", "drop", "drop in the first layer"],
)


class Rows:
    """Prompts with 24 image tokens each, or none, of different lengths; `alone(i)` and `batch()` are model inputs."""

    def __init__(self, *lengths: tuple[int, int, int]) -> None:
        generator = torch.Generator().manual_seed(5)
        self._lengths = lengths
        self._embeds = [torch.randn(1, sum(row), 64, generator=generator) for row in lengths]
        self.width = max(sum(row) for row in lengths)

    def alone(self, index: int) -> dict[str, Tensor]:
        sys, img, _ = self._lengths[index]
        embeds = self._embeds[index]
        mask = torch.zeros(1, embeds.shape[1], dtype=torch.bool)
        mask[:, sys : sys + img] = True
        return {"inputs_embeds": embeds, "image_mask": mask}

    def batch(self) -> dict[str, Tensor]:
        """Values of padding must not matter: it is large and not a number of any prompt's."""
        rows = [self.alone(index) for index in range(len(self._lengths))]
        missing = [self.width - row["inputs_embeds"].shape[1] for row in rows]
        real = [torch.ones(1, self.width - some, dtype=torch.int64) for some in missing]
        return {
            "inputs_embeds": torch.cat(
                [
                    pad(row["inputs_embeds"], (0, 0, some, 0), value=50.0)
                    for row, some in zip(rows, missing, strict=True)
                ]
            ),
            "image_mask": torch.cat(
                [pad(row["image_mask"], (some, 0)) for row, some in zip(rows, missing, strict=True)]
            ),
            "attention_mask": torch.cat([pad(one, (some, 0)) for one, some in zip(real, missing, strict=True)]),
        }


MIXED = Rows((5, 24, 9), (2, 24, 3), (0, 24, 20), (7, 0, 6), (30, 0, 10))  # the last two have no image


@pytest.fixture(params=["sdpa", "eager"])
def model(llama: HimapLlamaForCausalLM, request: pytest.FixtureRequest) -> Iterator[HimapLlamaForCausalLM]:
    llama.set_attn_implementation(request.param)
    # Eager attention in float64 is not a number in fully masked rows: transformers casts the mask's least value to
    # float32.
    yield llama.to(torch.float64 if request.param == "sdpa" else torch.float32)
    llama.float()


def asked(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs in the model's dtype."""
    return inputs | {"inputs_embeds": inputs["inputs_embeds"].to(model.dtype)}


def embedded(model: Any, *ids: int) -> Tensor:
    embeds = model.get_input_embeddings()(torch.tensor(ids)[:, None])
    assert isinstance(embeds, Tensor)
    return embeds


@pytest.mark.share(5)
@selecting
@pytest.mark.parametrize("use_cache", [False, True])
def test_each_row_as_if_alone(
    model: HimapLlamaForCausalLM, switch_on: Any, flags: dict[str, Any], use_cache: bool
) -> None:
    """Logits of every token left in a row, and what the row keeps, are those of the row alone."""
    switch_on(model.config, **flags, **EVEN[switch_on, model.dtype])

    together = model(**asked(model, MIXED.batch()), use_cache=use_cache).logits
    kept = model.model.kept

    for index in range(5):
        alone = model(**asked(model, MIXED.alone(index)), use_cache=use_cache).logits[0]
        assert torch.allclose(together[index, -alone.shape[0] :], alone, **CLOSE_IN[model.dtype])
        for name in ("txt", "img", "selected"):
            chosen, choice = getattr(kept, name), getattr(model.model.kept, name, None)
            if index >= 3:
                assert chosen is None or chosen[index].tolist() == []
            else:
                assert (chosen is None) == (choice is None)
                assert chosen is None or chosen[index].tolist() == choice[0].tolist()


@pytest.mark.share(5)
@selecting
def test_on_a_cache_as_if_alone(model: HimapLlamaForCausalLM, switch_on: Any, flags: dict[str, Any]) -> None:
    """So are new tokens on the batch's cache: one at a time, several, after a crop, and some of them padding."""
    switch_on(model.config, **flags, **EVEN[switch_on, model.dtype])
    batch, cache = asked(model, MIXED.batch()), DynamicCache()
    model(**batch, past_key_values=cache)
    later = torch.randint(3, 128, (5, 6), generator=torch.Generator().manual_seed(6))
    attention = batch["attention_mask"]
    positions = attention.sum(dim=1, keepdim=True)
    together = []
    for tokens in (later[:, :1], later[:, 1:4]):
        attention = torch.cat([attention, torch.ones_like(tokens)], dim=1)
        place = positions + torch.arange(tokens.shape[1])
        output = model(tokens, attention_mask=attention, position_ids=place, past_key_values=cache)
        together.append(output.logits)
        positions = positions + tokens.shape[1]
    cache.crop(-2)
    attention = torch.cat([attention[:, :-2], torch.tensor([[0, 1]] * 2 + [[1, 1]] * 3)], dim=1)
    place = positions - 2 + torch.tensor([[0, 0]] * 2 + [[0, 1]] * 3)
    last = model(later[:, 4:], attention_mask=attention, position_ids=place, past_key_values=cache).logits

    for index in range(5):
        own = DynamicCache()
        model(**asked(model, MIXED.alone(index)), past_key_values=own)
        ids = later[index : index + 1]
        alone = model(ids[:, :4], past_key_values=own).logits
        assert torch.allclose(torch.cat(together, dim=1)[index], alone[0], **CLOSE_IN[model.dtype])
        own.crop(-2)
        real = ids[:, 5:] if index < 2 else ids[:, 4:]
        alone = model(real, past_key_values=own).logits
        assert torch.allclose(last[index, -real.shape[1] :], alone[0], **CLOSE_IN[model.dtype])


def test_a_crop_into_the_questions(llama: HimapLlamaForCausalLM) -> None:
    """The end of every row's question may be taken back and another one asked."""
    himap_on(llama.config)
    rows, cache = Rows((5, 24, 9), (2, 24, 7)), DynamicCache()
    llama(**rows.batch(), past_key_values=cache)
    cache.crop(-6)
    together = llama(inputs_embeds=embedded(llama, 7, 8), past_key_values=cache).logits

    for index, token in enumerate((7, 8)):
        own = DynamicCache()
        llama(**rows.alone(index), past_key_values=own)
        own.crop(-6)
        alone = llama(inputs_embeds=embedded(llama, token), past_key_values=own).logits
        assert torch.allclose(together[index], alone[0], **CLOSE)


@selecting
def test_configured_lengths(llama: HimapLlamaForCausalLM, switch_on: Any, flags: dict[str, Any]) -> None:
    """Without an image mask the configured lengths count from where each row's padding ends."""
    rows = Rows((5, 24, 9), (5, 24, 2))
    switch_on(llama.config, **flags)
    expected = llama(**rows.batch(), use_cache=False).logits
    for name in ("hmap_v_sys_length", "custom_sys_length"):
        setattr(llama.config, name, 5)
    for name in ("hmap_v_img_length", "custom_image_token_length"):
        setattr(llama.config, name, 24)
    inputs = rows.batch()
    del inputs["image_mask"]

    assert torch.equal(llama(**inputs, use_cache=False).logits, expected)


def test_one_draw_for_all_rows(llama: HimapLlamaForCausalLM) -> None:
    """Rows of a batch start from one first index, drawn once, that each of their images has."""
    custom_on(llama.config, selection_method="fps", kept_tokens=3)
    rows = Rows((5, 24, 9), (2, 6, 3), (7, 0, 6))
    torch.manual_seed(1)
    first = int(torch.randint(0, 6, (1,)))
    state = torch.get_rng_state()
    torch.manual_seed(1)

    llama(**rows.batch(), use_cache=False)

    assert [chosen[:1].tolist() for chosen in llama.model.kept.selected] == [[first], [first], []]
    assert torch.equal(torch.get_rng_state(), state)


def test_padding_that_nobody_needs_is_dropped(llama: HimapLlamaForCausalLM) -> None:
    """After pruning a batch is as wide as its longest row, however wide the padding was."""
    himap_on(llama.config)
    batch = Rows((5, 24, 9), (2, 24, 3)).batch()
    wider = {
        "inputs_embeds": pad(batch["inputs_embeds"], (0, 0, 4, 0)),
        "image_mask": pad(batch["image_mask"], (4, 0)),
        "attention_mask": pad(batch["attention_mask"], (4, 0)),
    }

    logits = llama(**wider, use_cache=False).logits

    assert logits.shape[1] == 17
    assert torch.allclose(logits[0], llama(**batch, use_cache=False).logits[0], **CLOSE)


def test_a_repeated_batch(llama: HimapLlamaForCausalLM) -> None:
    """A cache of one unpadded row may be repeated for several continuations."""
    himap_on(llama.config)
    cache = DynamicCache()
    llama(**MIXED.alone(0), past_key_values=cache)
    cache.batch_repeat_interleave(2)
    twice = llama(inputs_embeds=embedded(llama, 7, 8), past_key_values=cache).logits
    for index, token in enumerate((7, 8)):
        own = DynamicCache()
        llama(**MIXED.alone(0), past_key_values=own)
        alone = llama(inputs_embeds=embedded(llama, token), past_key_values=own).logits
        assert torch.allclose(twice[index], alone[0], **CLOSE)


@pytest.mark.parametrize("rows", [MIXED, Rows((5, 24, 9), (8, 20, 10))], ids=["padded", "unevenly pruned"])
def test_a_repeated_batch_of_different_rows(llama: HimapLlamaForCausalLM, rows: Rows) -> None:
    """Where rows have padding, if only since they lost different numbers of tokens, the batch must stay as it is."""
    himap_on(llama.config, attn_txt_rank=20)
    batch, cache = rows.batch(), DynamicCache()
    count = len(batch["inputs_embeds"])
    llama(**batch, past_key_values=cache)
    cache.batch_repeat_interleave(2)
    with pytest.raises(ValueError, match=f"must hold the batch it was filled with, {count} rows, got {2 * count}"):
        llama(inputs_embeds=embedded(llama, *range(2 * count)), past_key_values=cache)


@pytest.mark.parametrize("mode", ["himap", "custom", "drop"])
@pytest.mark.parametrize("use_cache", [False, True])
def test_generate_answers_each_row_as_if_alone(
    llava: HimapLlavaForConditionalGeneration, mode: str, use_cache: bool
) -> None:
    """A whole LLaVA: a padded batch of questions with and without an image gets each question's own answer."""
    if mode == "himap":
        himap_on(llava.config, attn_txt_layer=1, attn_txt_rank=8, attn_img_layer=2, attn_img_rank=2)
    else:
        custom_on(llava.config, kept_tokens=4, agg_layer=1, drop=mode == "drop")
    image = [IMAGE_TOKEN] * IMAGE_TOKENS
    prompts = [[5, 6, 7, *image, 9, 10, 11, 12, 13], [8, *image, 20, 21], [30, 31, 32, 33]]
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    options = {"max_new_tokens": 6, "do_sample": False, "use_cache": use_cache, "suppress_tokens": [IMAGE_TOKEN, 0]}

    together = llava.generate(ids, attention_mask=(ids != 0).long(), pixel_values=pixels, **options)

    for index, prompt in enumerate(prompts):
        own = {"pixel_values": pixels[index : index + 1]} if index < 2 else {}
        alone = llava.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **own, **options)
        assert together[index, width:].tolist() == alone[0, len(prompt) :].tolist()
