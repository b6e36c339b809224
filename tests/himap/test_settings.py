"""Flags are checked when a mode is on: the rule, then what came."""

from __future__ import annotations

import itertools
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from himap.settings import (
    FLAGS,
    SWITCHES,
    CustomSettings,
    FastvSettings,
    HimapSettings,
    Lengths,
    Stage,
    active_settings,
)
from tests.himap.models import custom_on, fastv_on, himap_on

NOT_WHOLE = [-1, True, False, 2.0, "2", float("nan"), [2], np.float64(2), np.bool_(True)]


def himap_flags(**flags: Any) -> SimpleNamespace:
    config = SimpleNamespace()
    himap_on(config, **flags)
    return config


def custom_flags(**flags: Any) -> SimpleNamespace:
    config = SimpleNamespace()
    custom_on(config, **flags)
    return config


def test_off_by_default() -> None:
    """A config that never heard of the flags has every mode off."""
    assert active_settings(SimpleNamespace()) is None
    assert active_settings(SimpleNamespace(use_hmap_v=False, use_custom_selection=None)) is None


def test_himap_settings_as_given() -> None:
    """Flags become settings one to one; lengths and the image stage may be left out."""
    whole = himap_flags(sys_length=35, img_length=576)
    assert active_settings(whole) == HimapSettings(Lengths(35, 576), 2, 12, 4, 3)

    text_only = himap_flags(attn_img_layer=None, attn_img_rank=None)
    assert active_settings(text_only) == HimapSettings(Lengths(None, None), 2, 12, None, None)


def test_fastv_settings_as_given() -> None:
    """Flags become settings one to one; lengths may be left out."""
    config = SimpleNamespace()
    fastv_on(config)
    assert active_settings(config) == FastvSettings(Lengths(None, None), 2, 12)
    fastv_on(config, sys_length=35, image_token_length=576, agg_layer=3, attention_rank=144)
    assert active_settings(config) == FastvSettings(Lengths(35, 576), 3, 144)


@pytest.mark.parametrize("value", NOT_WHOLE, ids=repr)
@pytest.mark.parametrize("name", ["sys_length", "image_token_length", "agg_layer", "attention_rank"])
def test_fastv_numbers(name: str, value: Any) -> None:
    """Lengths, layer and rank are whole numbers, not negative."""
    config = SimpleNamespace()
    fastv_on(config, **{name: value})
    with pytest.raises(ValueError, match=rf"^fast_v_{name} must be a whole number of at least [01], got"):
        active_settings(config)


def test_stages() -> None:
    """A mode's stages in their order, with the rows whose attention counts."""
    both, config = active_settings(himap_flags()), SimpleNamespace()
    assert isinstance(both, HimapSettings)
    assert both.stages == (Stage(2, 12, "txt"), Stage(4, 3, "img"))
    text_only = active_settings(himap_flags(attn_img_layer=None, attn_img_rank=None))
    assert isinstance(text_only, HimapSettings)
    assert text_only.stages == (Stage(2, 12, "txt"),)
    fastv_on(config)
    fastv = active_settings(config)
    assert isinstance(fastv, FastvSettings)
    assert fastv.stages == (Stage(2, 12, "last"),)


def test_custom_settings_as_given() -> None:
    """Left out, the method is fps, the temperature the original's 0.1, the first index drawn, nothing dropped."""
    config = custom_flags(selection_method=None)
    assert active_settings(config) == CustomSettings(Lengths(None, None), 8, 2, "fps", 0.1, None, False)

    config = custom_flags(temperature=1, first_index=5, drop=True, sys_length=0, image_token_length=9)
    assert active_settings(config) == CustomSettings(Lengths(0, 9), 8, 2, "tome", 1.0, 5, True)


def test_numpy_numbers_are_numbers() -> None:
    """Whole numbers and temperatures may come from numpy; the settings hold Python's."""
    config = himap_flags(attn_txt_layer=np.int64(2), attn_txt_rank=np.int32(12), attn_img_rank=np.uint8(3))
    settings = active_settings(config)
    assert settings == HimapSettings(Lengths(None, None), 2, 12, 4, 3)
    assert type(settings.txt_layer) is int

    settings = active_settings(custom_flags(temperature=np.float32(0.5)))
    assert isinstance(settings, CustomSettings)
    assert type(settings.temperature) is float


def test_the_edges_are_allowed() -> None:
    """Rank 0, equal ranks, adjacent stages, no system tokens."""
    assert active_settings(himap_flags(attn_txt_rank=0, attn_img_rank=0)) is not None
    assert active_settings(himap_flags(attn_txt_rank=3, attn_img_rank=3)) is not None
    assert active_settings(himap_flags(attn_txt_layer=1, attn_img_layer=2, sys_length=0)) is not None
    assert active_settings(custom_flags(kept_tokens=1, agg_layer=0)) is not None


@pytest.mark.parametrize("flag", [*SWITCHES, "custom_drop"])
def test_a_switch_is_on_or_off(flag: str) -> None:
    """True, False, None, their numbers and numpy's; text is refused, or "false" would switch on."""
    config = custom_flags()
    for value in (True, False, None, 0, 1, np.bool_(True), np.bool_(False)):
        config.custom_drop = value
        settings = active_settings(config)
        assert isinstance(settings, CustomSettings)
        assert settings.drop is bool(value)
    for value in ("false", 2, [True]):
        setattr(config, flag, value)
        with pytest.raises(ValueError, match=f"^{flag} must be True or False, got {re.escape(repr(value))}$"):
            active_settings(config)


def test_one_mode_at_a_time() -> None:
    """Two modes on is an error, before any other flag is looked at."""
    for first, second in itertools.combinations(SWITCHES, 2):
        with pytest.raises(ValueError, match=f"^{first} and {second} must not both be on$"):
            active_settings(SimpleNamespace(**{first: True, second: True}))


@pytest.mark.parametrize("value", NOT_WHOLE, ids=repr)
@pytest.mark.parametrize(
    "name", ["sys_length", "img_length", "attn_txt_layer", "attn_txt_rank", "attn_img_layer", "attn_img_rank"]
)
def test_himap_numbers(name: str, value: Any) -> None:
    """Each HiMAP number is a whole one, and not negative; the message names the flag and what came."""
    with pytest.raises(ValueError, match=rf"hmap_v_{name} must be a whole number of at least [01], got .*"):
        active_settings(himap_flags(**{name: value}))


@pytest.mark.parametrize("value", NOT_WHOLE, ids=repr)
@pytest.mark.parametrize("name", ["sys_length", "image_token_length", "kept_tokens", "agg_layer", "first_index"])
def test_custom_numbers(name: str, value: Any) -> None:
    """Each number of custom selection is a whole one, and not negative."""
    with pytest.raises(ValueError, match=rf"custom_{name} must be a whole number of at least [01], got .*"):
        active_settings(custom_flags(**{name: value}))


@pytest.mark.parametrize("name", ["attn_txt_layer", "attn_txt_rank"])
def test_himap_needs_its_text_stage(name: str) -> None:
    """Layer and rank of the text stage have no default."""
    with pytest.raises(ValueError, match=f"hmap_v_{name} must be a whole number of at least [01], got None"):
        active_settings(himap_flags(**{name: None}))


@pytest.mark.parametrize("name", ["kept_tokens", "agg_layer"])
def test_custom_selection_needs_its_two(name: str) -> None:
    """The number of kept tokens and the layer have no default."""
    with pytest.raises(ValueError, match=f"custom_{name} must be a whole number of at least [01], got None"):
        active_settings(custom_flags(**{name: None}))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"attn_txt_layer": 0}, "hmap_v_attn_txt_layer must be a whole number of at least 1, got 0"),
        ({"img_length": 0}, "hmap_v_img_length must be a whole number of at least 1, got 0"),
        ({"attn_img_layer": 2}, "img_layer must be greater than hmap_v_attn_txt_layer, got 2 and 2"),
        ({"attn_img_layer": 1}, "img_layer must be greater than hmap_v_attn_txt_layer, got 1 and 2"),
        ({"attn_img_rank": 13}, "img_rank must be at most hmap_v_attn_txt_rank, got 13 and 12"),
        ({"attn_img_rank": None}, "go together, got 4 and None"),
        ({"attn_img_layer": None}, "go together, got None and 3"),
    ],
)
def test_himap_rules(flags: dict[str, Any], said: str) -> None:
    """The text stage comes first and keeps more; the image stage is given whole or not at all."""
    with pytest.raises(ValueError, match=said):
        active_settings(himap_flags(**flags))


@pytest.mark.parametrize("value", [0, 0.0, -0.1, float("nan"), float("inf"), True, "0.1", [0.1], np.float32("nan")])
def test_temperatures(value: Any) -> None:
    """A temperature is a finite number above 0."""
    with pytest.raises(ValueError, match="custom_temperature must be a finite number greater than 0, got"):
        active_settings(custom_flags(temperature=value))


@pytest.mark.parametrize("value", ["", "FPS", "kmeans", 3, ["fps"]])
def test_unknown_methods(value: Any) -> None:
    """The error for an unknown method names the known ones."""
    with pytest.raises(ValueError, match=r"custom_selection_method must be one of fps, tome, got"):
        active_settings(custom_flags(selection_method=value))


def test_zero_kept() -> None:
    """At least one token is kept."""
    with pytest.raises(ValueError, match="custom_kept_tokens must be a whole number of at least 1, got 0"):
        active_settings(custom_flags(kept_tokens=0))


def test_the_flags_have_the_originals_names() -> None:
    """Configs written for the original and for FastV's original name the same flags."""
    assert set(FLAGS) >= {
        *("use_hmap_v", "hmap_v_sys_length", "hmap_v_img_length"),
        *("hmap_v_attn_txt_layer", "hmap_v_attn_txt_rank", "hmap_v_attn_img_layer", "hmap_v_attn_img_rank"),
        *("use_custom_selection", "custom_sys_length", "custom_image_token_length", "custom_kept_tokens"),
        *("custom_agg_layer", "custom_selection_method", "custom_temperature"),
        *("use_fast_v", "fast_v_sys_length", "fast_v_image_token_length", "fast_v_attention_rank", "fast_v_agg_layer"),
    }


@pytest.mark.parametrize(
    ("flags", "predicate"),
    [
        (
            himap_flags(attn_txt_layer=4, attn_img_layer=6),
            "removes nothing: hmap_v_attn_txt_layer is 4, and the decoder's last layer is 3",
        ),
        (himap_flags(attn_img_layer=4), "removes nothing at its second stage: hmap_v_attn_img_layer is 4"),
        (himap_flags(attn_img_layer=3), ""),
        (custom_flags(agg_layer=4), "selects nothing: custom_agg_layer is 4"),
        (custom_flags(agg_layer=3), ""),
        (
            custom_flags(agg_layer=3, kept_tokens=64),
            "selects nothing: custom_kept_tokens is 64, and an image has 64 tokens",
        ),
    ],
)
def test_a_mode_that_does_nothing_in_a_model_says_so(flags: Any, predicate: str) -> None:
    """A layer past the last of 4, or all 64 tokens kept: with the flag, its value and the model's."""
    settings = active_settings(flags)
    assert settings is not None
    said = settings.without_effect(4, 64)
    assert said.startswith(predicate)
    assert bool(said) == bool(predicate)
