"""HiMAP: image tokens are pruned twice inside the decoder, first by attention of the text, then of the image."""

from __future__ import annotations

from typing import Any

from llava.argument_types import whole
from llava.model_shape import ModelShape
from llava.modes.registry import Choice, Mode, Option, register


def _defaults(shape: ModelShape) -> dict[str, Any]:
    """Ranks I/2 and I/8 of the I image tokens, the paper's 288 and 72 at 576; its layers 2 and 8, or 1 and half-way in
    a small model. Lengths are None: they come from the image mask."""
    return {
        "use_hmap_v": True,
        "hmap_v_sys_length": None,
        "hmap_v_img_length": None,
        "hmap_v_attn_txt_layer": 1 if shape.is_small else 2,
        "hmap_v_attn_txt_rank": shape.image_tokens // 2,
        "hmap_v_attn_img_layer": shape.halfway if shape.is_small else 8,
        "hmap_v_attn_img_rank": shape.image_tokens // 8,
    }


def _option(name: str, parse: Any, help_: str) -> Option:
    return Option(f"--{name}", name.replace("-", "_"), parse, help_)


register(
    Mode(
        name="himap",
        technique="HiMAP TECHNIQUE",
        defaults=_defaults,
        switch="use_hmap_v",
        reset="reset_hmapv",
        system_length="hmap_v_sys_length",
        original_keys={
            "use_himap": "use_hmap_v",
            "sys_length": "hmap_v_sys_length",
            "img_length": "hmap_v_img_length",
            "txt_layer": "hmap_v_attn_txt_layer",
            "img_layer": "hmap_v_attn_img_layer",
            "txt_rank": "hmap_v_attn_txt_rank",
            "img_rank": "hmap_v_attn_img_rank",
        },
        programs={"eval-scivqa": Choice("--use-hmap-v", "prune image tokens with HiMAP (default: baseline)")},
        options=(
            Option("--sys-length", "hmap_v_sys_length", whole(0), "tokens before the image (default: from the prompt)"),
            Option("--img-length", "hmap_v_img_length", whole(1), "tokens of the image (default: from the prompt)"),
            _option("hmap-v-attn-txt-layer", whole(1), "prune first before this layer (default: 2; 1 under 16 layers)"),
            _option("hmap-v-attn-txt-rank", whole(0), "image tokens kept there (default: half)"),
            _option(
                "hmap-v-attn-img-layer",
                whole(1),
                "prune again before this (default: 8; half-way under 16 layers)",
            ),
            _option("hmap-v-attn-img-rank", whole(0), "image tokens kept there (default: an eighth)"),
        ),
    )
)
