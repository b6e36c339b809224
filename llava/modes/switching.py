"""The flags of a mode for a model, and switching a loaded model from one mode to another."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from llava.errors import BadInput, shown
from llava.model_shape import image_token_count, model_shape
from llava.modes.registry import MODES

if TYPE_CHECKING:
    from himap import HimapLlavaConfig, HimapLlavaForConditionalGeneration


def default_flags(config: HimapLlavaConfig, mode: str) -> dict[str, Any]:
    """The flags of `mode` for a model of this shape; every flag of the mode is there. Raises BadInput."""
    if mode not in MODES:
        raise BadInput(f"the mode must be one of {', '.join(MODES)}, got {shown(mode)}")
    return MODES[mode].defaults(model_shape(config))


def default_new_tokens(config: HimapLlavaConfig) -> int:
    """The default limit of an answer, in tokens: 1024, or 8 in a model of fewer than 16 layers."""
    return 8 if model_shape(config).is_small else 1024


def mode_flags(config: HimapLlavaConfig, mode: str, **flags: Any) -> dict[str, Any]:
    """The defaults of `mode` with `flags` over them, checked against the model's shape. Needs no weights.

    Raises BadInput for an unknown mode, a flag that is not the mode's, and a value that breaks a rule.
    """
    defaults = default_flags(config, mode)
    fixed = {MODES[mode].switch, *MODES[mode].fixed}
    settable = [name for name in defaults if name not in fixed]
    for name in flags:
        if name not in settable:
            raise BadInput(f"a flag of mode {mode} must be one of ({', '.join(settable)}), got {shown(name)}")
    values = defaults | flags
    _check(values, image_token_count(config))
    return values


def mode_without_effect(config: HimapLlavaConfig, mode: str, **flags: Any) -> str:
    """One line where `mode`, or a stage of it, does nothing in a model of this shape, with the reason; "" elsewhere."""
    from himap.settings import active_settings  # imports torch, and a command line is checked before that

    settings = active_settings(SimpleNamespace(**mode_flags(config, mode, **flags)))
    shape = model_shape(config)
    predicate = "" if settings is None else settings.without_effect(shape.layers, shape.image_tokens)
    return predicate and f"Mode {mode} {predicate}"


def _check(values: dict[str, Any], image_tokens: int) -> None:
    """Raise BadInput where himap refuses these flags, or they are for images of another length."""
    from himap.settings import active_settings  # imports torch, and a command line is checked before that

    try:
        settings = active_settings(SimpleNamespace(**values))
        if settings is not None:
            settings.check_image(image_tokens)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if settings is not None and settings.lengths.img not in (None, image_tokens):
        raise BadInput(f"the image length must be the model's {image_tokens} image tokens, got {settings.lengths.img}")


def set_mode(model: HimapLlavaForConditionalGeneration, mode: str, **flags: Any) -> None:
    """Switch `model` to `mode` with `flags` (names as in `himap.settings`) over its defaults.

    Whatever the model did before is forgotten. Raises BadInput as `mode_flags` does; the model is in baseline then.
    """
    for switch in dict.fromkeys(other.switch for other in MODES.values() if other.prunes):
        setattr(model.config, switch, False)
    for reset in dict.fromkeys(other.reset for other in MODES.values() if other.reset):
        getattr(model.model, reset)()
    for name, value in mode_flags(model.config, mode, **flags).items():
        setattr(model.config, name, value)
