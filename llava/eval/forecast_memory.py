"""Forecast how much GPU memory answers need, and which cards they fit; needs no GPU and no weights."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from llava.argument_types import token_counts, whole
from llava.errors import BadInput, shown
from llava.eval.command_line import (
    ALL,
    ChosenMode,
    Parser,
    add_mode_options,
    add_version,
    check_packages,
    ignored_options,
)
from llava.eval.results import check_output
from llava.modes import MODES
from vram.cards import find_card
from vram.exit_codes import BAD_INPUT, INTERRUPTED, OUR_FAULT
from vram.replaying.collector import no_collections
from vram.simulated.allocator_settings import environment_settings

_MAX_SAMPLES = 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program. 0 it fits, 1 out of memory, 2 bad input, 70 a fault of our own, 130 interrupted."""
    try:
        options = _parser().parse_args(argv)
        _check(options)
        _warn(options)
        check_packages()
        with no_collections():
            from llava.eval.forecasting import forecast_modes, run_forecast  # not before the check: it imports torch
        return forecast_modes(options) if options.mode == ALL else run_forecast(options)
    except BadInput as error:
        return _fail(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except Exception:
        traceback.print_exc()
        return OUR_FAULT


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="forecast-memory",
        description="How much GPU memory LLaVA's answers would need, without a GPU and without weights.",
        allow_abbrev=False,
    )
    _add_workload(parser)
    add = parser.add_argument_group("prompts and answers").add_argument
    add("--answers", type=token_counts, default=(2, 2, 5, 24), help="tokens of each answer (default: 2,2,5,24)")
    add("--prompt-tokens", type=whole(1), help="tokens of each prompt with its image (default: 51 and the image's)")
    add(
        "--question-file",
        type=Path,
        help="LLaVA-format JSON, whose prompts are taken one after the other (default: none)",
    )
    add("--image-folder", type=Path, help="folder of the question file's images (default: none)")
    samples_help = "number of samples: prompts and answers are repeated as needed (default: each of the list once)"
    add("--samples", type=whole(1), help=samples_help)
    every_help = "simulate every token of long answers, and every layer (default: their ends, and layers that differ)"
    add("--every-step", action="store_true", help=every_help)
    add_mode_options(parser.add_argument_group("settings of the mode"), MODES.values())
    add = parser.add_argument_group("files").add_argument
    add("--output-file", type=Path, help="write the figures as JSON (default: not written)")
    add("--snapshot", type=Path, help="write allocations for PyTorch's memory viewer, *.pickle (default: not written)")
    add_version(parser)
    return parser


def _add_workload(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model and card").add_argument
    model_help = "7b, 13b, tiny, or a folder or hub id with a config (default: 7b)"
    add("--model-path", "--model", dest="model", default="7b", help=model_help)
    mode_help = "inference mode; all: a table of what each needs and saves (default: baseline)"
    add("--mode", choices=(*MODES, ALL), default="baseline", help=mode_help)
    add("--card", default="24GiB", help="a GPU's name or a size (default: 24GiB)")
    add("--batch", type=whole(1), default=1, help="prompts at once (default: 1)")
    add(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        default="float16",
        help="of weights and activations (default: float16)",
    )
    add("--attn", choices=("sdpa", "eager"), default="sdpa", help="attention implementation (default: sdpa)")
    cache_help = "compute the whole prompt anew at every token, as the original does (default: keep a KV cache)"
    add("--no-cache", action="store_true", help=cache_help)
    for bits in (8, 4):
        add(
            f"--load-{bits}bit",
            action="store_true",
            help="refused: bitsandbytes' kernels are not modelled (default: no)",
        )
    keep_help = "keep attentions and logits, as the original did: eager, no cache (default: keep nothing)"
    add("--keep-attentions", action="store_true", help=keep_help)


def _check(options: argparse.Namespace) -> None:
    """Raise BadInput for what can be seen without a model. Puts the card and resolved paths in the options."""
    try:
        options.card = find_card(options.card)
    except ValueError as error:
        raise BadInput(f"--card: {error}") from None
    try:
        environment_settings(os.environ)
    except ValueError as error:
        raise BadInput(str(error)) from None
    for name in ("load_8bit", "load_4bit"):
        if getattr(options, name):
            raise BadInput(
                f"a forecast's weights must not be quantised, as bitsandbytes' kernels are not modelled, "
                f"got --{name.replace('_', '-')} (measure it on a card: `eval-scivqa` has the same option)"
            )
    if options.samples is not None and options.samples > _MAX_SAMPLES:
        raise BadInput(f"--samples: must be at most {_MAX_SAMPLES:,}, got {shown(options.samples)}")
    if options.image_folder is not None and options.question_file is None:
        raise BadInput("--image-folder must come with --question-file, got it alone")
    if options.question_file is not None and options.prompt_tokens is not None:
        raise BadInput("prompts must come from --question-file or --prompt-tokens, got both")
    _check_files(options)


def _warn(options: argparse.Namespace) -> None:
    """Name, in one line, the options that do nothing in the chosen mode."""
    if options.mode == ALL:
        return
    if warning := ChosenMode(options.mode, {}, ignored_options(MODES[options.mode], options)).warning:
        print(f"forecast-memory: warning: {warning}", file=sys.stderr)


def _check_files(options: argparse.Namespace) -> None:
    for name, words in (("output_file", "output file"), ("snapshot", "snapshot")):
        if (path := getattr(options, name)) is not None:
            setattr(options, name, check_output(path, options.question_file, words))
    snapshot = options.snapshot
    if snapshot is not None and snapshot == options.output_file:
        raise BadInput(f"the snapshot must not be the output file, got {shown(str(snapshot))} for both")
    if snapshot is not None and options.mode == ALL:
        raise BadInput("--snapshot must come with one mode, got --mode all")
    if snapshot is not None and snapshot.suffix != ".pickle":
        raise BadInput(f"the snapshot must be called *.pickle, for the viewer, got {shown(snapshot.name)}")


def _fail(message: str, code: int) -> int:
    print(f"forecast-memory: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
