"""HiMAP and custom selection against vectors that the methods' reference implementations computed."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor
from transformers import DynamicCache

import himap.runs
from himap import HimapLlamaForCausalLM
from tests.himap.models import LAYERS, LOGITS, SCORES, Prompt, custom_on, golden, himap_on, watched_layers

STEPS = 8


def modes_of(*names: str) -> list[tuple[str, str]]:
    """(file, mode) of every mode in these files, the baseline included."""
    return [(name, mode) for name in names for mode in sorted({key.rsplit(".", 1)[0] for key in golden(name)})]


HIMAP = modes_of("himap_mha_A", "himap_mha_B")
CUSTOM = modes_of("custom_mha_A")
both_settings = pytest.mark.parametrize("use_cache", [False, True])
FPS = [(name, mode) for name, mode in CUSTOM if f"{mode}.generate_selected" in golden(name)]


class Case:
    """One mode: its vectors by field, its prompt, and the model with its flags set."""

    def __init__(self, model: HimapLlamaForCausalLM, name: str, mode: str) -> None:
        self.model, self.prompt = model, Prompt.golden(name[-1])
        self.vectors = {
            key.rsplit(".", 1)[1]: array for key, array in golden(name).items() if key.rsplit(".", 1)[0] == mode
        }
        if himap_flags := re.fullmatch(r"himap_t(\d+)_r(\d+)_i(\d+)_r(\d+)", mode):
            names = ("attn_txt_layer", "attn_txt_rank", "attn_img_layer", "attn_img_rank")
            flags = dict(zip(names, map(int, himap_flags.groups()), strict=True))
            himap_on(model.config, self.prompt, **flags)
        elif custom_flags := re.fullmatch(r"custom_(\w+)_k(\d+)_l(\d+)_tau([\d.]+)", mode):
            method, kept, layer, temperature = custom_flags.groups()
            custom_on(
                model.config,
                self.prompt,
                selection_method=method,
                kept_tokens=int(kept),
                agg_layer=int(layer),
                temperature=float(temperature),
            )
        else:
            assert mode == "baseline"

    def forward(self, embeds: Tensor | None = None, **cache: Any) -> Tensor:
        """Logits (tokens, vocab) of `embeds`, or of the prompt."""
        torch.manual_seed(7)  # what the first farthest point was drawn with, in every forward
        embeds = self.prompt.embeds if embeds is None else embeds
        return self.model(inputs_embeds=embeds, **({"use_cache": False} | cache)).logits[0]

    def keeping_all(self) -> list[str]:
        """For each scored stage of the reference the flag of its rank, where that keeps all tokens left; else ""."""
        left, flags = self.prompt.img, []
        for stage in ("txt", "img"):
            if f"{stage}_scores" in self.vectors:
                flag = f"hmap_v_attn_{stage}_rank"
                rank = getattr(self.model.config, flag)
                flags.append(flag if rank >= left else "")
                left = min(left, rank)
        return flags

    def absolute(self, kept: tuple[Tensor, ...] | None) -> np.ndarray:
        """Positions in the whole prompt, the only row, of image tokens `kept`."""
        assert kept is not None
        assert len(kept) == 1
        return kept[0].numpy() + self.prompt.sys

    def image_part(self, positions: np.ndarray) -> np.ndarray:
        return positions[(positions >= self.prompt.sys) & (positions < self.prompt.sys + self.prompt.img)]

    def decode_cached(self) -> tuple[list[int], list[np.ndarray]]:
        """Greedy ids and last logits of each step, on one cache that the prompt was put into."""
        ids: list[int] = []
        logits: list[np.ndarray] = []
        cache = DynamicCache()
        embeds = self.prompt.embeds
        for _ in range(STEPS):
            logits.append(self.forward(embeds, past_key_values=cache, use_cache=True)[-1].numpy())
            ids.append(int(logits[-1].argmax()))
            embeds = self.model.get_input_embeddings()(torch.tensor([[ids[-1]]]))
        return ids, logits

    def decode(self, each_step: Any = lambda step: None) -> tuple[list[int], list[np.ndarray], list[Any]]:
        """Greedy ids, last logits and `model.model.kept` of each step, everything computed anew in each."""
        ids, logits, kept = [], [], []
        embeds = self.prompt.embeds
        for step in range(STEPS):
            each_step(step)
            logits.append(self.forward(embeds)[-1].numpy())
            ids.append(int(logits[-1].argmax()))
            kept.append(self.model.model.kept)
            new = self.model.get_input_embeddings()(torch.tensor([[ids[-1]]]))
            embeds = torch.cat([embeds, new], dim=1)
        return ids, logits, kept


@pytest.fixture(params=["sdpa", "eager"])
def model(llama: HimapLlamaForCausalLM, request: pytest.FixtureRequest) -> HimapLlamaForCausalLM:
    llama.set_attn_implementation(request.param)
    return llama


@pytest.mark.share(5)
@both_settings
@pytest.mark.parametrize(("name", "mode"), HIMAP)
def test_himap_forward(
    model: HimapLlamaForCausalLM, name: str, mode: str, use_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits, scores, kept tokens, every layer's length and the positions left are those of the reference.

    A stage that keeps all tokens is not scored; it is compared where it keeps one less, which its scores do not see.
    """
    case = Case(model, name, mode)
    scores: list[Tensor] = []
    score = himap.runs.column_scores
    monkeypatch.setattr(himap.runs, "column_scores", lambda *a, **k: scores.append(score(*a, **k)) or scores[-1])

    with watched_layers(model.model) as watched:
        logits = case.forward(use_cache=use_cache)
    kept = model.model.kept
    stages = case.keeping_all()
    assert len(scores) == stages.count("")
    for place, rank in enumerate(stages):
        if rank:
            seen, scores = scores, []
            with monkeypatch.context() as patch:
                patch.setattr(model.config, rank, getattr(model.config, rank) - 1)
                case.forward(use_cache=use_cache)
            scores = [*seen[:place], scores[place], *seen[place:]]

    vectors = case.vectors
    assert_allclose(logits, vectors["logits"], **LOGITS)
    assert watched.lengths == vectors["layer_seq_len"].tolist()
    positions = torch.from_numpy(vectors["final_pos"])[None]
    assert_array_equal(watched.cosines[-1], model.model.rotary_emb(case.prompt.embeds, position_ids=positions)[0])
    if mode == "baseline":
        assert kept is None
        return
    assert_allclose(scores[0], vectors["txt_scores"], **SCORES)
    assert_array_equal(case.absolute(kept.txt), case.image_part(vectors["txt_keep"]))
    if "img_keep" in vectors:
        assert_allclose(scores[1], vectors["img_scores"], **SCORES)
        assert_array_equal(case.absolute(kept.img), case.image_part(vectors["img_keep"]))
    else:
        assert kept.img is None


@pytest.mark.share(5)
@pytest.mark.parametrize(("name", "mode"), HIMAP)
def test_himap_decoding(model: HimapLlamaForCausalLM, name: str, mode: str) -> None:
    """Without a cache the image is scored anew at each step: 8 tokens, their logits and each step's choice agree."""
    case = Case(model, name, mode)

    ids, logits, kept = case.decode()

    assert ids == case.vectors["gen_ids"].tolist()
    assert_allclose(logits, case.vectors["gen_last_logits"], **LOGITS)
    if mode != "baseline":
        final = [case.absolute(step.txt if step.img is None else step.img) for step in kept]
        assert_array_equal([case.absolute(step.txt) for step in kept], case.vectors["gen_txt_img_keep"])
        assert_array_equal(final, case.vectors["gen_final_img_keep"])


@pytest.mark.share(5)
@both_settings
@pytest.mark.parametrize(("name", "mode"), CUSTOM)
def test_custom_forward(
    model: HimapLlamaForCausalLM, name: str, mode: str, use_cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits, selection in its order, and the aggregated layer's input are those of the reference."""
    case = Case(model, name, mode)
    tokens: list[Tensor] = []
    merge = himap.runs.aggregate
    monkeypatch.setattr(himap.runs, "aggregate", lambda q, all_, t: tokens.append(all_) or merge(q, all_, t))

    with watched_layers(model.model) as watched:
        logits = case.forward(use_cache=use_cache)

    vectors = case.vectors
    assert_allclose(logits, vectors["logits"], **LOGITS)
    assert watched.lengths == [case.prompt.length] * LAYERS
    if "selected" not in vectors:  # the baseline, all tokens kept, or a layer beyond the last
        assert model.model.kept is None
        return
    assert_array_equal(model.model.kept.selected[0], vectors["selected"])
    assert_allclose(tokens[0], vectors["image_tokens_before"], **LOGITS)
    assert_allclose(watched.hidden[model.config.custom_agg_layer][0], vectors["agg_layer_input"], **LOGITS)


@pytest.mark.share(5)
@pytest.mark.parametrize(("name", "mode"), CUSTOM)
def test_custom_decoding(model: HimapLlamaForCausalLM, name: str, mode: str) -> None:
    """With one first index for all steps, 8 tokens, their logits and each step's selection agree."""
    case = Case(model, name, mode)

    ids, logits, kept = case.decode()

    assert ids == case.vectors["gen_ids"].tolist()
    assert_allclose(logits, case.vectors["gen_last_logits"], **LOGITS)
    if "gen_selected" in case.vectors:
        assert_array_equal([step.selected[0] for step in kept], case.vectors["gen_selected"])


@pytest.mark.share(5)
@pytest.mark.parametrize(("name", "mode"), HIMAP)
def test_himap_cached_decoding(model: HimapLlamaForCausalLM, name: str, mode: str) -> None:
    """With a cache the choice is frozen: tokens agree as long as the reference, scoring anew, keeps the same."""
    case = Case(model, name, mode)
    same = STEPS
    if mode != "baseline":
        choices = zip(case.vectors["gen_txt_img_keep"], case.vectors["gen_final_img_keep"], strict=True)
        both = [(txt.tolist(), final.tolist()) for txt, final in choices]
        same = next((step for step in range(STEPS) if both[step] != both[0]), STEPS)

    ids, logits = case.decode_cached()

    assert same >= 1
    assert ids[:same] == case.vectors["gen_ids"][:same].tolist()
    assert_allclose(logits[:same], case.vectors["gen_last_logits"][:same], **LOGITS)


@pytest.mark.share(5)
@pytest.mark.parametrize(("name", "mode"), CUSTOM)
def test_custom_cached_decoding(model: HimapLlamaForCausalLM, name: str, mode: str) -> None:
    """With a cache the image is merged once, which text cannot change: 8 tokens and their logits agree."""
    case = Case(model, name, mode)

    ids, logits = case.decode_cached()

    assert ids == case.vectors["gen_ids"].tolist()
    assert_allclose(logits, case.vectors["gen_last_logits"], **LOGITS)


@pytest.mark.share(3)
@pytest.mark.parametrize(("name", "mode"), FPS)
def test_a_given_first_index(model: HimapLlamaForCausalLM, name: str, mode: str) -> None:
    """`custom_first_index` is obeyed at each forward: the original's drifting run can be reproduced."""
    case = Case(model, name, mode)

    def give(step: int) -> None:
        model.config.custom_first_index = int(case.vectors["generate_selected"][step, 0])

    ids, logits, kept = case.decode(give)

    assert ids == case.vectors["generate_ids"].tolist()
    assert_allclose(logits, case.vectors["generate_last_logits"], **LOGITS)
    assert_array_equal([step.selected[0] for step in kept], case.vectors["generate_selected"])
