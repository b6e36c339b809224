"""FastV: image tokens are pruned once, by attention of the last token; what HiMAP is compared with."""

from __future__ import annotations

from typing import Any

from llava.argument_types import whole
from llava.model_shape import ModelShape
from llava.modes.registry import Choice, Mode, Option, register


def _defaults(shape: ModelShape) -> dict[str, Any]:
    """Half of the image tokens kept from layer 2 on, FastV's K = 2 and R = 50 %; layer 1 in a small model. Lengths are
    None: they come from the image mask."""
    return {
        "use_fast_v": True,
        "fast_v_sys_length": None,
        "fast_v_image_token_length": None,
        "fast_v_agg_layer": 1 if shape.is_small else 2,
        "fast_v_attention_rank": shape.image_tokens // 2,
    }


def _option(name: str, parse: Any, help_: str) -> Option:
    return Option(f"--{name}", name.replace("-", "_"), parse, help_)


_FLAGS = ("fast_v_sys_length", "fast_v_image_token_length", "fast_v_attention_rank", "fast_v_agg_layer")

register(
    Mode(
        name="fastv",
        technique="FastV TECHNIQUE",
        defaults=_defaults,
        switch="use_fast_v",
        reset="reset_hmapv",
        system_length="fast_v_sys_length",
        original_keys={"use_fastv": "use_fast_v"} | {flag: flag for flag in _FLAGS},
        programs={"eval-scivqa": Choice("--use-fast-v", "prune image tokens with FastV (default: baseline)")},
        options=(
            _option("fast-v-sys-length", whole(0), "tokens before the image (default: from the prompt)"),
            _option("fast-v-image-token-length", whole(1), "tokens of the image (default: from the prompt)"),
            _option("fast-v-agg-layer", whole(1), "FastV's K: prune before this layer (default: 2; 1 under 16 layers)"),
            _option("fast-v-attention-rank", whole(0), "image tokens kept there, I (1 - R) (default: half)"),
        ),
    )
)
