"""Answer ScienceQA questions with LLaVA, plainly or with HiMAP."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from llava.eval.common import build_parser, given, refuse, run_program, whole

_FLAGS = {
    "hmap_v_sys_length": "sys_length",
    "hmap_v_img_length": "img_length",
    "hmap_v_attn_txt_layer": "hmap_v_attn_txt_layer",
    "hmap_v_attn_txt_rank": "hmap_v_attn_txt_rank",
    "hmap_v_attn_img_layer": "hmap_v_attn_img_layer",
    "hmap_v_attn_img_rank": "hmap_v_attn_img_rank",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code (see `run_program`)."""
    parser = build_parser("eval-scivqa", "Answer ScienceQA questions with LLaVA, plainly or with HiMAP token pruning.")
    add = parser.add_argument
    add("--use-hmap-v", action="store_true", help="prune image tokens with HiMAP")
    add("--sys-length", type=whole(0), help="tokens before the image (default: found in the prompt)")
    add("--img-length", type=whole(1), help="tokens of the image (default: found in the prompt)")
    add("--hmap-v-attn-txt-layer", type=whole(1), help="first pruning before this layer (default: by the model)")
    add("--hmap-v-attn-txt-rank", type=whole(0), help="image tokens kept there (default: half)")
    add("--hmap-v-attn-img-layer", type=whole(1), help="second pruning before this layer (default: by the model)")
    add("--hmap-v-attn-img-rank", type=whole(0), help="image tokens kept there (default: an eighth)")
    return run_program(parser, argv, _mode)


def _mode(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    if options.use_hmap_v:
        return "himap", given(options, _FLAGS)
    refuse(options, _FLAGS.values(), "needs --use-hmap-v, got it alone")
    return "baseline", {}


if __name__ == "__main__":
    sys.exit(main())
