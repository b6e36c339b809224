"""Custom token selection: some image tokens are selected, and the others aggregated into them. A mode for each way."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from llava.argument_types import positive, whole
from llava.model_shape import ModelShape
from llava.modes.registry import Choice, Mode, Option, register


def _defaults(method: str, shape: ModelShape) -> dict[str, Any]:
    """64 tokens kept at layer 2, or 8 half-way in a small model. Lengths are None: they come from the image mask."""
    return {
        "use_custom_selection": True,
        "custom_sys_length": None,
        "custom_image_token_length": None,
        "custom_kept_tokens": 8 if shape.is_small else 64,
        "custom_agg_layer": shape.halfway if shape.is_small else 2,
        "custom_selection_method": method,
        "custom_temperature": 0.1,
        "custom_first_index": None,
        "custom_drop": False,
    }


def _draws(flags: Mapping[str, Any]) -> bool:
    return flags["custom_selection_method"] == "fps" and flags["custom_first_index"] is None


def _option(name: str, parse: Any, help_: str) -> Option:
    return Option(f"--{name}", name.replace("-", "_"), parse, help_)


_OPTIONS = (
    _option("custom-sys-length", whole(0), "tokens before the image (default: from the prompt)"),
    _option("custom-image-token-length", whole(1), "tokens of the image (default: from the prompt)"),
    _option("custom-kept-tokens", whole(1), "image tokens kept (default: by the model)"),
    _option("custom-agg-layer", whole(0), "select at the input of this layer (default: by the model)"),
    _option("custom-temperature", positive, "temperature of the aggregation's softmax (default: 0.1)"),
)

for _method in ("fps", "tome"):
    _choice = Choice("--custom-selection-method", "farthest points (default) or ToMe", _method)
    register(
        Mode(
            name=f"custom-{_method}",
            technique="CUSTOM TOKEN SELECTION TECHNIQUE",
            defaults=partial(_defaults, _method),
            switch="use_custom_selection",
            fixed=("custom_selection_method",),
            reset="reset_custom_selection",
            system_length="custom_sys_length",
            draws=_draws,
            programs={"custom-selection-inference": _choice},
            options=_OPTIONS,
        )
    )
