"""The inference modes: which flags each sets, and switching a loaded model from one to another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from himap import HimapLlavaConfig, HimapLlavaForConditionalGeneration
from himap.settings import CUSTOM_FLAGS, HIMAP_FLAGS, active_settings
from llava.builder import image_token_count
from llava.errors import BadInput, shown

MODES = ("baseline", "himap", "custom-fps", "custom-tome")
_SMALL_MODEL = 16  # layers; below that the paper's layers 2 and 8 make no sense


def default_flags(config: HimapLlavaConfig, mode: str) -> dict[str, Any]:
    """The flags of `mode` for a model of this shape; every flag of the mode is there. `baseline` has none.

    HiMAP: ranks are I/2 and I/8 of the I image tokens, which is the paper's 288 and 72 at 576; the layers are the
    paper's 2 and 8, or 1 and half-way in a model of fewer than 16 layers. Custom selection: 64 tokens kept at layer 2,
    or 8 half-way. Lengths are None: they come from the image mask.
    """
    if mode not in MODES:
        raise BadInput(f"the mode must be one of {', '.join(MODES)}, got {shown(mode)}")
    if mode == "baseline":
        return {}
    layers, image_tokens = config.text_config.num_hidden_layers, image_token_count(config)
    small = layers < _SMALL_MODEL
    half_way = max(2, layers // 2)
    if mode == "himap":
        return dict.fromkeys(HIMAP_FLAGS) | {
            "use_hmap_v": True,
            "hmap_v_attn_txt_layer": 1 if small else 2,
            "hmap_v_attn_txt_rank": image_tokens // 2,
            "hmap_v_attn_img_layer": half_way if small else 8,
            "hmap_v_attn_img_rank": image_tokens // 8,
        }
    return dict.fromkeys(CUSTOM_FLAGS) | {
        "use_custom_selection": True,
        "custom_kept_tokens": 8 if small else 64,
        "custom_agg_layer": half_way if small else 2,
        "custom_selection_method": mode.removeprefix("custom-"),
        "custom_temperature": 0.1,
        "custom_drop": False,
    }


def default_new_tokens(config: HimapLlavaConfig) -> int:
    """The most tokens an answer may have unless told otherwise: 1024, or 8 in a model of fewer than 16 layers."""
    return 8 if config.text_config.num_hidden_layers < _SMALL_MODEL else 1024


def mode_flags(config: HimapLlavaConfig, mode: str, **flags: Any) -> dict[str, Any]:
    """The defaults of `mode` with `flags` over them, checked against the model's shape. Needs no weights.

    Raises BadInput for an unknown mode, a flag that is not the mode's, and a value that breaks a rule.
    """
    defaults = default_flags(config, mode)
    settable = [name for name in defaults if not name.startswith("use_") and name != "custom_selection_method"]
    for name in flags:
        if name not in settable:
            raise BadInput(f"a flag of mode {mode} must be one of ({', '.join(settable)}), got {shown(name)}")
    values = defaults | flags
    image_tokens = image_token_count(config)
    try:
        settings = active_settings(SimpleNamespace(**values))
        if settings is not None:
            settings.check_image(image_tokens)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if settings is not None and settings.lengths.img not in (None, image_tokens):
        raise BadInput(f"the image length must be the model's {image_tokens} image tokens, got {settings.lengths.img}")
    return values


def set_mode(model: HimapLlavaForConditionalGeneration, mode: str, **flags: Any) -> None:
    """Switch `model` to `mode` with `flags` (names as in `himap.settings`) over its defaults.

    Whatever the model did before is forgotten. Raises BadInput as `mode_flags` does; the model is in baseline then.
    """
    model.config.use_hmap_v = False
    model.model.reset_hmapv()
    model.config.use_custom_selection = False
    model.model.reset_custom_selection()
    for name, value in mode_flags(model.config, mode, **flags).items():
        setattr(model.config, name, value)
