from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from himap import HimapLlavaConfig, HimapLlavaForConditionalGeneration, Kept
from himap.settings import CUSTOM_FLAGS, FASTV_FLAGS, HIMAP_FLAGS, SELECTION_METHODS
from llava.answering import Answer, Answerer
from llava.builder import Checkpoint
from llava.errors import BadInput
from llava.modes import MODES, default_flags, default_new_tokens, mode_flags, set_mode
from llava.questions import embedded_questions


def a_config(layers: int, image_size: int = 336) -> HimapLlavaConfig:
    """LLaVA-1.5-7B's shape, but for these."""
    vision = CLIPVisionConfig(image_size=image_size, patch_size=14)
    return HimapLlavaConfig(vision_config=vision, text_config=LlamaConfig(num_hidden_layers=layers))


@pytest.fixture
def real_config() -> HimapLlavaConfig:
    return a_config(32)


@pytest.fixture
def first_answer(checkpoint: Checkpoint, model: HimapLlavaForConditionalGeneration) -> Callable[[], Answer]:
    answerer = Answerer(checkpoint.tokenizer, model, checkpoint.image_processor, max_new_tokens=4)
    return lambda: answerer.answer(embedded_questions(1)[0])


def _only_set(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def test_the_papers_setting_on_the_papers_model(real_config: HimapLlavaConfig) -> None:
    """HiMAP: layers 2 and 8, ranks 288 and 72 of 576. Custom selection: the defaults of the original's program, 8 kept
    at layer 12. Lengths are left to the image mask."""
    assert _only_set(default_flags(real_config, "himap")) == {
        "use_hmap_v": True,
        "hmap_v_attn_txt_layer": 2,
        "hmap_v_attn_txt_rank": 288,
        "hmap_v_attn_img_layer": 8,
        "hmap_v_attn_img_rank": 72,
    }
    assert _only_set(default_flags(real_config, "custom-tome")) == {
        "use_custom_selection": True,
        "custom_kept_tokens": 8,
        "custom_agg_layer": 12,
        "custom_selection_method": "tome",
        "custom_temperature": 0.1,
        "custom_drop": False,
    }
    fps = default_flags(real_config, "custom-fps") | {"custom_selection_method": "tome"}
    assert fps == default_flags(real_config, "custom-tome")
    assert default_new_tokens(real_config) == 1024


def test_a_small_model_has_its_own_setting(checkpoint: Checkpoint) -> None:
    """On tiny (64 image tokens, 4 layers): layers 1 and 2, ranks 32 and 8, 8 kept, 8 new tokens."""
    himap, fps = default_flags(checkpoint.config, "himap"), default_flags(checkpoint.config, "custom-fps")

    assert [himap[f"hmap_v_attn_{name}"] for name in ("txt_layer", "txt_rank", "img_layer", "img_rank")] == [
        1,
        32,
        2,
        8,
    ]
    assert (fps["custom_kept_tokens"], fps["custom_agg_layer"], fps["custom_selection_method"]) == (8, 2, "fps")
    assert default_new_tokens(checkpoint.config) == 8


@pytest.mark.parametrize("layers", [1, 2, 3, 15, 16, 40])
@pytest.mark.parametrize("image_size", [28, 224, 336])
def test_defaults_are_valid_for_every_shape(layers: int, image_size: int) -> None:
    """No mode refuses its own defaults."""
    config = a_config(layers, image_size)
    for mode in MODES:
        assert mode_flags(config, mode) == default_flags(config, mode)
    assert tuple(default_flags(config, "himap")) == HIMAP_FLAGS
    assert tuple(default_flags(config, "fastv")) == FASTV_FLAGS
    assert tuple(default_flags(config, "custom-fps")) == CUSTOM_FLAGS


def test_every_selection_method_is_a_mode() -> None:
    """The modes of custom selection are himap's methods, neither more nor fewer."""
    assert list(MODES) == ["baseline", "himap", "fastv", *(f"custom-{method}" for method in SELECTION_METHODS)]


@pytest.mark.parametrize(
    ("mode", "flags", "rule"),
    [
        ("prumerge", {}, "mode must be one of baseline, himap, fastv, custom-fps, custom-tome, got 'prumerge'"),
        ("fastv", {"fast_v_attention_rank": 65}, "at most the 64 image tokens, got 65"),
        ("fastv", {"fast_v_agg_layer": 0}, "at least 1, got 0"),
        ("fastv", {"use_fast_v": False}, "a flag of mode fastv"),
        ("baseline", {"hmap_v_attn_txt_rank": 3}, "a flag of mode baseline"),
        ("himap", {"custom_kept_tokens": 3}, "a flag of mode himap must be one of .*got 'custom_kept_tokens'"),
        ("custom-fps", {"custom_selection_method": "tome"}, "a flag of mode custom-fps"),
        ("himap", {"use_hmap_v": False}, "a flag of mode himap"),
        ("himap", {"hmap_v_attn_txt_rank": 65}, "at most the 64 image tokens, got 65"),
        ("himap", {"hmap_v_attn_img_rank": 33}, "at most hmap_v_attn_txt_rank, got 33 and 32"),
        ("himap", {"hmap_v_attn_img_layer": 1}, "greater than hmap_v_attn_txt_layer, got 1 and 1"),
        ("himap", {"hmap_v_attn_txt_layer": 0}, "at least 1, got 0"),
        ("himap", {"hmap_v_attn_txt_rank": -1}, "at least 0, got -1"),
        ("himap", {"hmap_v_attn_img_layer": None}, "go together"),
        ("himap", {"hmap_v_img_length": 576}, "the model's 64 image tokens, got 576"),
        ("custom-fps", {"custom_image_token_length": 63}, "the model's 64 image tokens, got 63"),
        ("custom-fps", {"custom_kept_tokens": 0}, "at least 1, got 0"),
        ("custom-tome", {"custom_temperature": 0}, "greater than 0, got 0"),
        ("custom-fps", {"custom_first_index": 64}, "below the 64 image tokens, got 64"),
    ],
)
def test_a_bad_flag_leaves_the_model_in_baseline(
    model: HimapLlavaForConditionalGeneration, mode: str, flags: dict[str, Any], rule: str
) -> None:
    """The rule and what came; the mode that was on before is off, and the new one is not on."""
    set_mode(model, "himap")

    with pytest.raises(BadInput, match=rule):
        set_mode(model, mode, **flags)

    assert not model.config.use_hmap_v
    assert not model.config.use_custom_selection


def test_a_mode_starts_from_its_defaults(model: HimapLlavaForConditionalGeneration) -> None:
    """A setting of an earlier call does not linger."""
    set_mode(model, "custom-fps", custom_kept_tokens=3, custom_drop=True, custom_first_index=5)
    set_mode(model, "custom-fps")

    assert (model.config.custom_kept_tokens, model.config.custom_drop, model.config.custom_first_index) == (
        8,
        False,
        None,
    )
    assert model.config.text_config.custom_kept_tokens == 8


def test_modes_come_and_go(model: HimapLlavaForConditionalGeneration, first_answer: Callable[[], Answer]) -> None:
    """Every mode answers in its own way, and baseline afterwards is baseline again; per-run state is dropped."""
    decoder = model.model.language_model
    plain = first_answer()
    for mode in list(MODES)[1:]:
        set_mode(model, mode)
        assert first_answer() != plain
        decoder.kept = Kept(txt=torch.arange(3))

        set_mode(model, "baseline")
        assert decoder.kept is None
        assert first_answer() == plain


def test_baseline_is_both_lines_of_the_incidents_fix(
    model: HimapLlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For HiMAP and for custom selection alike: the flag is False itself, and the reset is called."""
    called = []
    monkeypatch.setattr(model.model, "reset_hmapv", lambda: called.append("hmapv"))
    monkeypatch.setattr(model.model, "reset_custom_selection", lambda: called.append("custom"))
    model.config.use_hmap_v = model.config.use_custom_selection = True

    set_mode(model, "baseline")

    assert sorted(called) == ["custom", "hmapv"]
    assert model.config.use_hmap_v is False
    assert model.config.use_custom_selection is False


def test_flags_reach_the_decoder(model: HimapLlavaForConditionalGeneration, first_answer: Callable[[], Answer]) -> None:
    """The ranks asked for are what the decoder keeps; the text stage alone is a choice."""
    set_mode(model, "himap", hmap_v_attn_txt_rank=20, hmap_v_attn_img_rank=5)
    first_answer()
    kept = model.model.language_model.kept
    assert kept is not None
    assert (len(kept.txt[0]), len(kept.img[0])) == (20, 5)

    set_mode(model, "himap", hmap_v_attn_img_layer=None, hmap_v_attn_img_rank=None)
    first_answer()
    assert model.model.language_model.kept.img is None
