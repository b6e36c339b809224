"""The decoder with a mode on: refusals, no-ops, first indices, positions, captured outputs."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import himap
import himap.runs
from himap import HimapLlamaForCausalLM
from tests.himap.models import LAYERS, TEXT, Prompt, custom_on, himap_on, watched_layers
from tests.himap.test_scoring import PeakBytes

PROMPT = Prompt.golden("A")  # 5 system, 24 image, 9 text tokens


def logits_of(model: HimapLlamaForCausalLM, embeds: Tensor = PROMPT.embeds, **kwargs: Any) -> Tensor:
    return model(inputs_embeds=embeds, **({"use_cache": False} | kwargs)).logits


def mask_of(length: int, *image: int) -> Tensor:
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[0, list(image)] = True
    return mask


both_modes = pytest.mark.parametrize("switch_on", [himap_on, custom_on])


class TestRefusals:
    """Each is a ValueError that says the rule, then what came."""

    def test_both_modes(self, llama: HimapLlamaForCausalLM) -> None:
        """Both modes on at once."""
        himap_on(llama.config, PROMPT)
        custom_on(llama.config, PROMPT)
        with pytest.raises(ValueError, match="must not both be on"):
            logits_of(llama)

    def test_a_rank_above_the_image(self, llama: HimapLlamaForCausalLM) -> None:
        """A text rank larger than the image, which may be known from its mask only."""
        himap_on(llama.config, attn_txt_rank=25)
        with pytest.raises(ValueError, match="hmap_v_attn_txt_rank must be at most the 24 image tokens, got 25"):
            logits_of(llama, image_mask=PROMPT.image_mask)

    def test_a_first_index_outside_the_image(self, llama: HimapLlamaForCausalLM) -> None:
        """A first farthest point that is no image token."""
        custom_on(llama.config, PROMPT, selection_method="fps", first_index=24)
        with pytest.raises(ValueError, match="custom_first_index must be below the 24 image tokens, got 24"):
            logits_of(llama)

    @both_modes
    @pytest.mark.parametrize(("sys", "img", "said"), [(4, 24, "system length is 4"), (5, 23, "image length is 23")])
    def test_lengths_that_disagree(
        self, llama: HimapLlamaForCausalLM, switch_on: Any, sys: int, img: int, said: str
    ) -> None:
        """Configured lengths that the image mask contradicts."""
        switch_on(llama.config, Prompt(PROMPT.embeds, sys, img))
        with pytest.raises(ValueError, match=f"configured {said}, the prompt's is (5|24)"):
            logits_of(llama, image_mask=PROMPT.image_mask)

    @both_modes
    @pytest.mark.parametrize(("sys", "img"), [(None, None), (5, None), (None, 24)])
    def test_no_lengths_and_no_mask(
        self, llama: HimapLlamaForCausalLM, switch_on: Any, sys: int | None, img: int | None
    ) -> None:
        """Nothing says where the image is."""
        switch_on(llama.config, Prompt(PROMPT.embeds, sys, img))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"must both be configured, got {sys} and {img}"):
            logits_of(llama)

    @both_modes
    def test_an_image_in_pieces(self, llama: HimapLlamaForCausalLM, switch_on: Any) -> None:
        """Image tokens with text between them."""
        switch_on(llama.config)
        with pytest.raises(ValueError, match="must be contiguous, got 4 of them between 5 and 9"):
            logits_of(llama, image_mask=mask_of(PROMPT.length, 5, 6, 8, 9))

    @both_modes
    def test_a_mask_of_another_length(self, llama: HimapLlamaForCausalLM, switch_on: Any) -> None:
        """A mask made for another prompt."""
        switch_on(llama.config)
        with pytest.raises(ValueError, match=r"image_mask must have the tokens' shape \[1, 38\], got \[1, 37\]"):
            logits_of(llama, image_mask=PROMPT.image_mask[:, 1:])

    @both_modes
    @pytest.mark.parametrize(
        "padding", [[1] * 37 + [0], [0] * 3 + [1, 0] + [1] * 33], ids=["on the right", "in the middle"]
    )
    def test_padding_not_on_the_left(self, llama: HimapLlamaForCausalLM, switch_on: Any, padding: list[int]) -> None:
        """Padding anywhere but before the prompt."""
        switch_on(llama.config, PROMPT)
        with pytest.raises(ValueError, match="padding must stand on the left"):
            logits_of(llama, attention_mask=torch.tensor([padding]))

    @both_modes
    def test_an_image_under_padding(self, llama: HimapLlamaForCausalLM, switch_on: Any) -> None:
        """Padding that reaches into the image."""
        switch_on(llama.config)
        padding = torch.ones(1, PROMPT.length, dtype=torch.int64)
        padding[:, :6] = 0
        with pytest.raises(ValueError, match="begins at 5, the padding ends at 6"):
            logits_of(llama, attention_mask=padding, image_mask=PROMPT.image_mask)

    @both_modes
    @pytest.mark.parametrize("shape", [(1, 37), (2, 38), (1, 1, 38, 38), (38,)], ids=str)
    def test_another_kind_of_attention_mask(
        self, llama: HimapLlamaForCausalLM, switch_on: Any, shape: tuple[int, ...]
    ) -> None:
        """An attention mask that is not one number for each token: of another length, or four-dimensional."""
        switch_on(llama.config, PROMPT)
        with pytest.raises(ValueError, match=r"must have the tokens' shape \[1, 38\], got \["):
            logits_of(llama, attention_mask=torch.ones(shape).index_fill(-1, torch.tensor([0]), 0))

    @pytest.mark.parametrize("length", [29, 20])
    def test_no_text_after_the_image(self, llama: HimapLlamaForCausalLM, length: int) -> None:
        """HiMAP on a prompt that ends with its image, or before it does."""
        himap_on(llama.config, PROMPT)
        with pytest.raises(ValueError, match=f"text after the image: got {length} tokens, the image ends at 29"):
            logits_of(llama, PROMPT.embeds[:, :length])

    def test_no_input(self, llama: HimapLlamaForCausalLM) -> None:
        """Neither ids nor embeddings, or both."""
        himap_on(llama.config, PROMPT)
        with pytest.raises(ValueError, match="exactly one of"):
            llama(use_cache=False)
        with pytest.raises(ValueError, match="exactly one of"):
            llama(input_ids=torch.ones(1, 38, dtype=torch.int64), inputs_embeds=PROMPT.embeds, use_cache=False)

    def test_labels_by_position(self, llama: HimapLlamaForCausalLM) -> None:
        """Labels of a prompt that is pruned, given without their name."""
        himap_on(llama.config, PROMPT)
        labels = torch.ones(1, PROMPT.length, dtype=torch.int64)
        with pytest.raises(ValueError, match="must keep its length where labels counts its tokens"):
            llama(None, None, None, None, PROMPT.embeds, labels)

    def test_packed_sequences(self, llama: HimapLlamaForCausalLM) -> None:
        """Continuous batching hands several prompts as one row: its image would be anyone's."""
        himap_on(llama.config, PROMPT)
        with pytest.raises(ValueError, match=r"must be one prompt .*, got packed sequences"):
            llama(inputs_embeds=PROMPT.embeds, cu_seq_lens_q=torch.tensor([0, 19, 38]), use_cache=False)

    def test_a_refusal_leaves_nothing(self, llama: HimapLlamaForCausalLM) -> None:
        """After a refused forward the next one is as if it had never been."""
        himap_on(llama.config, PROMPT)
        expected = logits_of(llama)
        with pytest.raises(ValueError, match="padding"):
            logits_of(llama, attention_mask=torch.tensor([[1] * 37 + [0]]))
        assert llama.model.kept is None
        assert torch.equal(logits_of(llama), expected)


class TestNothingToDo:
    """A mode that has nothing to do takes the dense path: the baseline's logits, bit for bit."""

    @pytest.mark.parametrize("layer", [LAYERS, LAYERS + 1, 99])
    def test_a_layer_beyond_the_last(self, llama: HimapLlamaForCausalLM, layer: int) -> None:
        """A first stage, or an aggregation, that would come after the last layer."""
        dense = logits_of(llama)
        himap_on(llama.config, PROMPT, attn_txt_layer=layer, attn_img_layer=layer + 1)
        assert torch.equal(logits_of(llama), dense)
        llama.config.use_hmap_v = False
        custom_on(llama.config, PROMPT, agg_layer=layer)
        assert torch.equal(logits_of(llama), dense)

    @pytest.mark.parametrize("kept", [24, 25, 576])
    @pytest.mark.parametrize("method", ["fps", "tome"])
    def test_custom_keeping_everything(self, llama: HimapLlamaForCausalLM, method: str, kept: int) -> None:
        """As many tokens kept as the image has, or more; no first index is drawn."""
        dense = logits_of(llama)
        custom_on(llama.config, PROMPT, selection_method=method, kept_tokens=kept)
        state = torch.get_rng_state()

        assert torch.equal(logits_of(llama), dense)

        assert torch.equal(torch.get_rng_state(), state)

    def test_custom_on_a_short_sequence(self, llama: HimapLlamaForCausalLM) -> None:
        """A sequence that ends before the configured image does."""
        short = PROMPT.embeds[:, :28]
        dense = logits_of(llama, short)
        custom_on(llama.config, PROMPT)
        assert torch.equal(logits_of(llama, short), dense)

    def test_custom_on_a_short_conversation(self, llama: HimapLlamaForCausalLM) -> None:
        """On a cache such a sequence may grow to the configured image's end and beyond, and stays dense."""
        ids = torch.randint(3, 128, (1, 27), generator=torch.Generator().manual_seed(3))
        dense = llama.generate(ids, max_new_tokens=6, do_sample=False)
        custom_on(llama.config, PROMPT)
        assert llama.generate(ids, max_new_tokens=6, do_sample=False).tolist() == dense.tolist()

    @both_modes
    def test_no_image(self, llama: HimapLlamaForCausalLM, switch_on: Any) -> None:
        """A text-only prompt, alone or in a padded batch, with a cache or without; what was kept before is gone."""
        nothing = torch.zeros(2, PROMPT.length, dtype=torch.bool)
        padding = torch.ones(2, PROMPT.length, dtype=torch.int64)
        padding[0, :3] = 0
        batch = PROMPT.embeds.repeat(2, 1, 1)
        dense = logits_of(llama), logits_of(llama, batch, attention_mask=padding)
        switch_on(llama.config, PROMPT)
        logits_of(llama)
        assert llama.model.kept is not None

        assert torch.equal(logits_of(llama, image_mask=nothing[:1], use_cache=True), dense[0])
        assert torch.equal(logits_of(llama, batch, attention_mask=padding, image_mask=nothing), dense[1])
        assert llama.model.kept is None


class TestHimap:
    def test_an_image_stage_beyond_the_last_layer(
        self, llama: HimapLlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It never happens, and is not scored for: the same as no image stage."""
        himap_on(llama.config, PROMPT, attn_img_layer=None, attn_img_rank=None)
        alone = logits_of(llama)
        assert llama.model.kept.img is None
        scored: list[range] = []
        score = himap.runs.column_scores
        monkeypatch.setattr(himap.runs, "column_scores", lambda *a, **k: scored.append(k["rows"]) or score(*a, **k))

        himap_on(llama.config, PROMPT, attn_img_layer=LAYERS)

        assert torch.equal(logits_of(llama), alone)
        assert llama.model.kept.img is None
        assert scored == [range(29, 38)]

    def test_scoring_keeps_nothing_for_a_gradient(
        self, llama: HimapLlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A forward with gradients has them, and scores without: a choice has no derivative."""
        himap_on(llama.config, PROMPT)
        scored: list[bool] = []
        score = himap.runs.column_scores
        monkeypatch.setattr(
            himap.runs, "column_scores", lambda *a, **k: scored.append(torch.is_grad_enabled()) or score(*a, **k)
        )
        embeds = PROMPT.embeds.clone().requires_grad_()

        with torch.enable_grad():
            logits_of(llama, embeds)[0, -1].sum().backward()

        assert scored == [False, False]
        assert embeds.grad is not None
        assert embeds.grad[0, 0].abs().sum() > 0

    def test_scoring_stays_within_the_tile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """All that a layer's scoring takes fits in a tile, the rotated keys included, however many heads there are."""
        heads = {"num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 32}
        model = HimapLlamaForCausalLM(LlamaConfig(**TEXT | heads)).eval()
        tile_bytes = 3 * 2**19
        himap_on(model.config, sys_length=5, img_length=500, attn_img_layer=3)
        monkeypatch.setattr(himap.runs, "TILE_BYTES", tile_bytes)
        model.config.intermediate_size = 2**20  # so that it is the tile that counts
        peaks: list[int] = []
        scored = himap.runs.Prefill._scored

        def measured(*args: Any, **kwargs: Any) -> list[Tensor]:
            with PeakBytes() as meter:
                scores = scored(*args, **kwargs)
            peaks.append(meter.peak_bytes)
            return scores

        monkeypatch.setattr(himap.runs.Prefill, "_scored", measured)

        model(torch.randint(3, 60, (1, 1000)), use_cache=False)

        assert len(peaks) == 2
        assert max(peaks) <= tile_bytes  # rotated at once, the keys alone would take 3 of 4 MB

    @pytest.mark.parametrize("ranks", [(0, 0), (7, 0)])
    def test_rank_zero(self, llama: HimapLlamaForCausalLM, ranks: tuple[int, int]) -> None:
        """A stage may remove the whole image: 14 text tokens are left."""
        himap_on(llama.config, PROMPT, attn_txt_rank=ranks[0], attn_img_rank=ranks[1])

        with watched_layers(llama.model) as watched:
            logits = logits_of(llama)

        assert watched.lengths == [38, 38, 14 + ranks[0], 14 + ranks[0], 14, 14]
        assert logits.shape[1] == 14
        assert logits.isfinite().all()

    def test_a_mask_serves_as_well_as_lengths(self, llama: HimapLlamaForCausalLM) -> None:
        """Lengths from the mask, from the config, or from both: the same logits."""
        himap_on(llama.config, PROMPT)
        expected = logits_of(llama)
        assert torch.equal(logits_of(llama, image_mask=PROMPT.image_mask), expected)
        himap_on(llama.config, sys_length=None, img_length=None)
        assert torch.equal(logits_of(llama, image_mask=PROMPT.image_mask), expected)

    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize("seed", range(5))
    def test_choice_on_grouped_heads(self, seed: int, bias: bool) -> None:
        """With grouped key heads, and biases, the text stage keeps what plain transformers' own maps rank first."""
        torch.manual_seed(seed)
        config = LlamaConfig(**TEXT, attention_bias=bias, attn_implementation="eager")
        plain, ours = LlamaForCausalLM(config).eval(), HimapLlamaForCausalLM(config).eval()
        if bias:
            for layer in plain.model.layers:
                layer.self_attn.q_proj.bias.normal_()
        ours.load_state_dict(plain.state_dict())
        embeds = torch.randn(1, 30, config.hidden_size)
        maps = plain(inputs_embeds=embeds, output_attentions=True, use_cache=False).attentions
        scores = maps[1][0].mean(dim=0)[24:, 4:24].sum(dim=0)
        himap_on(config, sys_length=4, img_length=20, attn_txt_rank=9, attn_img_layer=None, attn_img_rank=None)

        ours(inputs_embeds=embeds, use_cache=False)

        assert ours.model.kept.txt[0].tolist() == sorted(scores.topk(9).indices.tolist())

    def test_positions_stay_the_original_ones(self, llama: HimapLlamaForCausalLM) -> None:
        """After each stage, what is left keeps the rotation of where it stood; given positions are kept likewise."""
        himap_on(llama.config, PROMPT)
        positions = torch.arange(PROMPT.length)[None] + 100

        with watched_layers(llama.model) as watched:
            logits_of(llama, position_ids=positions)

        kept, text = llama.model.kept, [*range(29, 38)]
        for layer, image in ((0, torch.arange(24)), (2, kept.txt[0]), (4, kept.img[0])):
            left = torch.tensor([[*range(5), *(image + 5).tolist(), *text]]) + 100
            assert torch.equal(watched.cosines[layer], llama.model.rotary_emb(PROMPT.embeds, position_ids=left)[0])

    @pytest.mark.parametrize("position_ids", [None, torch.arange(PROMPT.length)[None]])
    def test_no_mask_under_sdpa(self, llama: HimapLlamaForCausalLM, position_ids: Tensor | None) -> None:
        """Attention is plain causal after pruning: no layer gets an N x N mask, nor gapped positions to make one of."""
        himap_on(llama.config, PROMPT)

        with watched_layers(llama.model) as watched:
            logits_of(llama, position_ids=position_ids)

        assert watched.masks == [None] * LAYERS
        assert watched.position_ids == [None] * LAYERS

    @pytest.mark.parametrize("ask", ["output_attentions", "output_hidden_states"])
    def test_captured_outputs(self, llama: HimapLlamaForCausalLM, ask: str) -> None:
        """Eager attention gives back every layer's map, or the first input and every output, each as long as it was."""
        llama.set_attn_implementation("eager")
        himap_on(llama.config, PROMPT)
        lengths = [38, 38, 26, 26, 17, 17]

        output = llama(inputs_embeds=PROMPT.embeds, use_cache=False, **{ask: True})

        if ask == "output_attentions":
            assert [tuple(one.shape) for one in output.attentions] == [(1, 4, n, n) for n in lengths]
            assert all(torch.allclose(one.sum(dim=-1), torch.ones(())) for one in output.attentions)
        else:
            assert [one.shape[1] for one in output.hidden_states] == [38, *lengths]

    def test_tuples(self, llama: HimapLlamaForCausalLM) -> None:
        """`return_dict=False` gives a tuple, as in transformers."""
        himap_on(llama.config, PROMPT)

        output = llama.model(inputs_embeds=PROMPT.embeds, use_cache=False, return_dict=False)

        assert isinstance(output, tuple)
        assert output[0].shape == (1, 17, 64)


class TestCustomSelection:
    @pytest.mark.parametrize("method", ["fps", "tome"])
    @pytest.mark.parametrize("drop", [False, True])
    @pytest.mark.parametrize("layer", [0, 2, LAYERS - 1])
    def test_it_changes_the_logits(self, llama: HimapLlamaForCausalLM, method: str, layer: int, drop: bool) -> None:
        """The flags are wired: logits of the last token move visibly, at any layer, with both methods."""
        dense = logits_of(llama)
        custom_on(llama.config, PROMPT, selection_method=method, agg_layer=layer, drop=drop)

        assert (logits_of(llama)[0, -1] - dense[0, -1]).abs().max() > 0.01

    def test_dropping(self, llama: HimapLlamaForCausalLM) -> None:
        """`custom_drop` removes the zeros: system, aggregates, text, where the first ones stood."""
        custom_on(llama.config, PROMPT)
        with watched_layers(llama.model) as filled:
            logits_of(llama)
        custom_on(llama.config, PROMPT, drop=True)
        with watched_layers(llama.model) as dropped:
            logits_of(llama)

        assert filled.lengths == [38] * LAYERS
        assert dropped.lengths == [38, 38, 22, 22, 22, 22]
        left = [*range(13), *range(29, 38)]
        assert not filled.hidden[2][0, 13:29].any()
        assert torch.equal(dropped.hidden[2], filled.hidden[2][:, left])
        assert torch.equal(dropped.cosines[-1], filled.cosines[-1][:, left])

    def test_one_draw_per_forward(self, llama: HimapLlamaForCausalLM) -> None:
        """Each bare forward takes exactly one number from torch's global generator, and starts there."""
        custom_on(llama.config, PROMPT, selection_method="fps")
        torch.manual_seed(11)
        drawn = [int(torch.randint(0, 24, (1,))) for _ in range(3)]
        state = torch.get_rng_state()
        torch.manual_seed(11)

        firsts = []
        for _ in range(3):
            logits_of(llama)
            firsts.append(int(llama.model.kept.selected[0][0]))

        assert firsts == drawn
        assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize("use_cache", [False, True])
    def test_one_draw_per_generate(
        self, llama: HimapLlamaForCausalLM, use_cache: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All steps of one `generate` start from one index, drawn once; the next `generate` draws its own."""
        custom_on(llama.config, PROMPT, selection_method="fps")
        firsts: list[int] = []
        choose = himap.runs.farthest_points
        monkeypatch.setattr(
            himap.runs, "farthest_points", lambda t, k, first: firsts.append(first) or choose(t, k, first)
        )
        ids = torch.randint(3, 128, (1, PROMPT.length))
        torch.manual_seed(11)
        drawn = [int(torch.randint(0, 24, (1,))) for _ in range(2)]
        state = torch.get_rng_state()
        torch.manual_seed(11)

        for _ in range(2):
            llama.generate(ids, max_new_tokens=4, do_sample=False, use_cache=use_cache)

        steps = 1 if use_cache else 4
        assert firsts == [drawn[0]] * steps + [drawn[1]] * steps
        assert torch.equal(torch.get_rng_state(), state)

    def test_an_interrupted_generate_keeps_no_index(self, llama: HimapLlamaForCausalLM) -> None:
        """When `generate` raises, the next forward draws anew."""
        custom_on(llama.config, PROMPT, selection_method="fps")
        ids = torch.randint(3, 128, (1, PROMPT.length))

        def fail(*_: Any) -> bool:
            raise RuntimeError("enough")

        with pytest.raises(RuntimeError, match="enough"):
            llama.generate(ids, max_new_tokens=4, do_sample=False, stopping_criteria=[fail])
        state = torch.get_rng_state()

        logits_of(llama)

        assert not torch.equal(torch.get_rng_state(), state)

    def test_overlapping_generates_keep_no_index(self, llama: HimapLlamaForCausalLM) -> None:
        """Two threads may generate at once: whichever ends first, afterwards each forward draws anew."""
        custom_on(llama.config, PROMPT, selection_method="fps")
        with ThreadPoolExecutor(1) as another_thread:
            inside = llama.model.one_first_index()
            with llama.model.one_first_index():
                another_thread.submit(inside.__enter__).result()
                logits_of(llama)
            another_thread.submit(inside.__exit__, None, None, None).result()

        for _ in range(2):
            state = torch.get_rng_state()
            logits_of(llama)
            assert not torch.equal(torch.get_rng_state(), state)

    def test_a_copied_model(self, llama: HimapLlamaForCausalLM) -> None:
        """A model may be copied, even while it generates; the copy is in no `generate` and draws for itself."""
        custom_on(llama.config, PROMPT, selection_method="fps")
        with llama.model.one_first_index():
            logits_of(llama)
            twin = copy.deepcopy(llama)
            state = torch.get_rng_state()
            logits_of(twin)
            assert not torch.equal(torch.get_rng_state(), state)
            torch.set_rng_state(state)
            logits_of(llama)
            assert torch.equal(torch.get_rng_state(), state)

    @pytest.mark.parametrize(
        "flags", [{"selection_method": "fps", "first_index": 5}, {"selection_method": "tome"}], ids=str
    )
    def test_no_draw(self, llama: HimapLlamaForCausalLM, flags: dict[str, Any]) -> None:
        """A given first index, and ToMe, draw nothing."""
        custom_on(llama.config, PROMPT, **flags)
        state = torch.get_rng_state()

        logits_of(llama)
        llama.generate(torch.randint(3, 128, (1, 40), generator=torch.Generator()), max_new_tokens=2, do_sample=False)

        assert torch.equal(torch.get_rng_state(), state)

    def test_generate_is_left_alone_while_off(
        self, llama: HimapLlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With every mode off, `generate` is transformers' and nothing else."""
        monkeypatch.delattr(himap.Himap_LlamaModel, "one_first_index")
        ids = torch.randint(3, 128, (1, PROMPT.length))

        assert llama.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, PROMPT.length + 2)

    @pytest.mark.parametrize("method", ["fps", "tome"])
    def test_a_cache_changes_no_token(self, llama: HimapLlamaForCausalLM, method: str) -> None:
        """With a cache the image is merged once; greedy tokens are those of merging it at every step."""
        custom_on(llama.config, PROMPT, selection_method=method, first_index=9)
        ids = torch.randint(3, 128, (1, PROMPT.length))

        cached, anew = (
            llama.generate(ids, max_new_tokens=12, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
        )

        assert cached.tolist() == anew.tolist()
        llama.config.use_custom_selection = False
        assert llama.generate(ids, max_new_tokens=12, do_sample=False).tolist() != cached.tolist()


def test_threads_share_a_model(llama: HimapLlamaForCausalLM) -> None:
    """A forward in the midst of which another thread runs one of its own chooses by its own prompt."""
    himap_on(llama.config, PROMPT)
    expected = logits_of(llama)

    def another_forward(*_: Any) -> None:
        hook.remove()
        with ThreadPoolExecutor(1) as another_thread:
            another_thread.submit(logits_of, llama, PROMPT.embeds.flip(1)).result()

    hook = llama.model.layers[1].self_attn.k_proj.register_forward_hook(another_forward)

    assert torch.equal(logits_of(llama), expected)


@pytest.mark.parametrize(
    "switch_on",
    [
        lambda config: himap_on(config, PROMPT),
        lambda config: custom_on(config, PROMPT, agg_layer=0),
        lambda config: custom_on(config, PROMPT, agg_layer=0, drop=True),
    ],
    ids=["himap", "fill", "drop"],
)
def test_inputs_are_only_read(llama: HimapLlamaForCausalLM, switch_on: Any) -> None:
    """The caller's embeddings, and the model's own, are the same after the forward."""
    embeds, weights = PROMPT.embeds.clone(), llama.get_input_embeddings().weight.clone()
    switch_on(llama.config)

    logits_of(llama, embeds)
    llama(torch.arange(PROMPT.length)[None], use_cache=False)

    assert torch.equal(embeds, PROMPT.embeds)
    assert torch.equal(llama.get_input_embeddings().weight, weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@both_modes
def test_half_precision(switch_on: Any, dtype: torch.dtype) -> None:
    """Half-precision models run in both modes and stay in their dtype."""
    model = HimapLlamaForCausalLM(LlamaConfig(**TEXT)).eval().to(dtype)
    switch_on(model.config, sys_length=3, attn_img_layer=3) if switch_on is himap_on else switch_on(model.config)

    output = model(torch.arange(3, 33)[None], image_mask=mask_of(30, *range(3, 20)), use_cache=False)

    assert output.logits.dtype == dtype
    assert output.logits.isfinite().all()
