"""Custom token selection: some image tokens are selected, and the others aggregated into them. A mode for each way.

Defaults are those of the original program, `custom_selection_inference.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from llava.argument_types import positive, whole
from llava.model_shape import ModelShape
from llava.modes.registry import Choice, Mode, Option, register


def _defaults(method: str, shape: ModelShape) -> dict[str, Any]:
    """8 tokens kept at layer 12, half-way in a small model. Lengths are None: they come from the image mask."""
    return {
        "use_custom_selection": True,
        "custom_sys_length": None,
        "custom_image_token_length": None,
        "custom_kept_tokens": 8,
        "custom_agg_layer": shape.halfway if shape.is_small else 12,
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
    _option("custom-kept-tokens", whole(1), "image tokens kept (default: 8)"),
    _option("custom-agg-layer", whole(0), "select at the input of this layer (default: 12; half-way under 16 layers)"),
    _option("custom-temperature", positive, "temperature of the aggregation's softmax (default: 0.1)"),
    _option("custom-drop", None, "remove the slots that hold no aggregate (default: they stay, as zeros)"),
)
_FIRST = _option("custom-first-index", whole(0), "first of the farthest points, from 0 (default: drawn, seed 0)")

_ORIGINAL_KEYS = {
    "use_custom_selection": "use_custom_selection",
    "sys_length": "custom_sys_length",
    "img_length": "custom_image_token_length",
    "kept_tokens": "custom_kept_tokens",
    "agg_layer": "custom_agg_layer",
    "selection_method": "custom_selection_method",
    "temperature": "custom_temperature",
}

for _method in ("fps", "tome"):
    _choice = Choice("--custom-selection-method", "farthest points or token merging (default: fps)", _method)
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
            original_keys=_ORIGINAL_KEYS,
            programs={"custom-selection-inference": _choice},
            options=(*_OPTIONS, _FIRST) if _method == "fps" else _OPTIONS,
        )
    )
