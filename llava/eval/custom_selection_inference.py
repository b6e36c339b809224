"""Answer ScienceQA questions with LLaVA and custom token selection, or plainly."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from llava.eval.common import build_parser, given, positive, run_program, whole

_FLAGS = {
    name: name
    for name in (
        "custom_sys_length",
        "custom_image_token_length",
        "custom_kept_tokens",
        "custom_agg_layer",
        "custom_temperature",
    )
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code (see `run_program`)."""
    parser = build_parser(
        "custom-selection-inference", "Answer ScienceQA questions with LLaVA and custom token selection, or plainly."
    )
    add = parser.add_argument
    add("--baseline", action="store_true", help="no token selection: plain LLaVA")
    add("--custom-sys-length", type=whole(0), help="tokens before the image (default: found in the prompt)")
    add("--custom-image-token-length", type=whole(1), help="tokens of the image (default: found in the prompt)")
    add("--custom-kept-tokens", type=whole(1), help="image tokens kept (default: by the model)")
    add("--custom-agg-layer", type=whole(0), help="select at the input of this layer (default: by the model)")
    add("--custom-selection-method", choices=("fps", "tome"), help="farthest points (default) or ToMe")
    add("--custom-temperature", type=positive, help="of the aggregation's softmax (default: 0.1)")
    return run_program(parser, argv, _mode)


def _mode(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    if options.baseline:
        return "baseline", {}
    return f"custom-{options.custom_selection_method or 'fps'}", given(options, _FLAGS)


if __name__ == "__main__":
    sys.exit(main())
