"""What the two programs share: the command line and the exit codes. Imports no torch: usage errors come at once."""

from __future__ import annotations

import argparse
import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from llava.conversation import CONVERSATIONS
from llava.errors import BadInput, shown
from llava.eval.ranks import Rank, Report
from llava.load_options import ATTENTIONS, DTYPES
from vram.exit_codes import BAD_INPUT, FINE, INTERRUPTED, OUR_FAULT, OUT_OF_MEMORY


class Parser(argparse.ArgumentParser):
    """Raises BadInput where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """As BadInput."""
        raise BadInput(message)


def build_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with the arguments that both programs take."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--model-path", default="tiny", help="a checkpoint's folder, a hub id, or tiny (default), 7b or 13b")
    add("--model-base", help="the LLaMA, as folder or hub id, that a checkpoint of a projector only goes with")
    add("--question-file", type=Path, help="LLaVA-format JSON (default: 20 questions that come with the package)")
    add("--image-folder", type=Path, help="where the images of the question file lie")
    add("--conv-mode", choices=tuple(CONVERSATIONS), default="vicuna_v1")
    add("--single-pred-prompt", action="store_true", help="ask for the option's letter only")
    add("--num-chunks", type=whole(1), default=1, help="split the questions into this many chunks")
    add("--chunk-idx", type=whole(0), default=0, help="answer only this chunk, counted from 0")
    add("--num-samples", type=_sample_count, default=-1, help="answer only the first so many questions; -1: all")
    add("--max-new-tokens", type=whole(1), help="longest answer (default: 1024; 8 on a model under 16 layers)")
    add("--output-file", type=Path, help=f"results as JSON (default: {prog}-MODE.json in the current folder)")
    add("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda or cuda:NUMBER")
    add("--device-map", help="spread by accelerate, not with --device: auto, balanced, balanced_low_0 or sequential")
    add("--offload-folder", type=Path, help="for what a device map puts on the disk")
    add("--dtype", choices=DTYPES, help="default: float16 on CUDA, float32 on the CPU")
    add("--load-8bit", action="store_true", help="the decoder in 8 bit, by bitsandbytes on CUDA")
    add("--load-4bit", action="store_true", help="the decoder in 4 bit, by bitsandbytes on CUDA")
    add("--attn", choices=ATTENTIONS, default="sdpa", help="attention implementation")
    add("--no-cache", action="store_true", help="compute the whole prompt anew at every token, as the original does")
    add(
        "--keep-attentions",
        action="store_true",
        help="keep attentions and logits, as the first version did: eager, no cache",
    )
    add(
        "--rank-timeout",
        type=positive,
        default=600.0,
        metavar="SECONDS",
        help="under torchrun: give up a rank of which nothing is heard for so long (default: 600)",
    )
    return parser


def run_program(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    choose: Callable[[argparse.Namespace], tuple[str, Mapping[str, Any]]],
) -> int:
    """Parse, run, and turn whatever happens into an exit code; errors of the user's are one line on stderr.

    `choose` gives the mode and those of its flags that the command line sets. 0 fine, 1 out of memory, 2 bad input,
    70 a fault of our own (with its traceback), 130 interrupted. Under torchrun this process is one of several that
    share the questions (see `llava.eval.supervisor`).
    """
    rank = Rank.here(os.environ)
    if rank is None:
        code, message = _run(parser, argv, choose, None)
        if message:
            print(f"{parser.prog}: error: {message}", file=sys.stderr)
        return code
    from llava.eval.supervisor import supervise

    def work(report: Report) -> int:
        code, message = _run(parser, argv, choose, report)
        report.ended(code, message or ("a fault of our own" if code else ""))
        return code

    return supervise(parser.prog, rank, work)


def _run(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    choose: Callable[[argparse.Namespace], tuple[str, Mapping[str, Any]]],
    report: Report | None,
) -> tuple[int, str]:
    """The exit code, and one line to be told of it."""
    try:
        options = parser.parse_args(argv)
        from llava.eval.loop import evaluate  # not before the command line is known to be right: this imports torch

        evaluate(options, *choose(options), prog=parser.prog, report=report)
    except BadInput as error:
        return BAD_INPUT, _one_line(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED, "interrupted"
    except Exception as error:
        from vram.replaying.out_of_memory import is_out_of_memory

        if isinstance(error, MemoryError) or is_out_of_memory(error):
            return OUT_OF_MEMORY, _one_line(f"out of memory: {error}")
        traceback.print_exc()
        return OUR_FAULT, ""
    return FINE, ""


def given(options: argparse.Namespace, names: Mapping[str, str]) -> dict[str, Any]:
    """Those flags that the command line sets; `names` maps a flag to the name of its option."""
    values = {flag: getattr(options, option) for flag, option in names.items()}
    return {flag: value for flag, value in values.items() if value is not None}


def whole(lowest: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `lowest`."""

    def parse(text: str) -> int:
        try:
            number = int(text) if _plain(text) else lowest - 1
        except ValueError:
            number = lowest - 1
        if number < lowest:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {lowest}, got {shown(text)}")
        return number

    return parse


def _plain(text: str) -> bool:
    return text.isascii() and "_" not in text  # Python would read 1_0 as 10, and digits of other scripts


def positive(text: str) -> float:
    """An argparse type: a finite number greater than 0."""
    try:
        number = float(text) if _plain(text) else math.nan
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number greater than 0, got {shown(text)}")
    return number


def _sample_count(text: str) -> int:
    if text == "-1":
        return -1
    try:
        return whole(1)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; -1 means all") from error


def _one_line(message: str) -> str:
    return " ".join(message.split())
