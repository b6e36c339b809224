"""The command line of the programs that answer questions. Imports no torch: usage errors come at once."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import vram
from llava.argument_types import positive, sample_count, whole
from llava.conversation import CONVERSATIONS
from llava.errors import BadInput
from llava.load_options import ASPECT_RATIOS, ATTENTIONS, DTYPES
from llava.modes import MODES, Mode
from vram.extras import missing

ALL = "all"  # in place of a mode: all of them, one after the other


@dataclass(frozen=True)
class Program:
    """A program that answers questions. `default_mode` is the one where the command line chooses none."""

    name: str
    description: str
    default_mode: str


class Parser(argparse.ArgumentParser):
    """Raises BadInput where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise `message` as BadInput."""
        raise BadInput(message)


def build_parser(program: Program) -> argparse.ArgumentParser:
    """A parser with the arguments that all programs take, and those of the modes that `program` offers."""
    parser = Parser(prog=program.name, description=program.description, allow_abbrev=False)
    _add_questions(parser, program.name)
    _add_loading(parser)
    _add_answering(parser)
    _add_modes(parser, program.name)
    add_version(parser)
    return parser


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add --version."""
    parser.add_argument("--version", action="version", version=f"{parser.prog} {vram.__version__}, of himap-vram")


def check_packages() -> None:
    """Raise BadInput where the packages that every program needs are not installed, before one of them is imported."""
    if text := missing("llava"):
        raise BadInput(text)


@dataclass(frozen=True)
class ChosenMode:
    """The mode that a command line chooses, and those of its flags that it sets; `ignored` names options of others."""

    name: str
    flags: Mapping[str, Any]
    ignored: Sequence[str]

    @property
    def warning(self) -> str:
        """One line about the options that do nothing; "" where there are none."""
        return f"these options do nothing in mode {self.name}: {', '.join(self.ignored)}" if self.ignored else ""


def chosen_mode(program: Program, options: argparse.Namespace) -> ChosenMode:
    """The mode that the command line chooses. Raises BadInput for two modes.

    A mode that prunes nothing goes before all others: their options are ignored then.
    """
    chosen = [mode for mode in _offered(program.name) if mode.programs[program.name].is_made(options)]
    if options.mode is not None:
        if others := [mode.programs[program.name].option for mode in chosen if mode.name != options.mode]:
            raise BadInput(f"one mode must be chosen, got --mode {options.mode} and {' and '.join(others)}")
        if options.mode == ALL:
            return ChosenMode(ALL, {}, ())
        mode = MODES[options.mode]
        return ChosenMode(mode.name, mode.flags(options), ignored_options(mode, options))
    if plain := [mode for mode in chosen if not mode.prunes]:
        chosen = plain
    if len(chosen) > 1:
        names = " and ".join(mode.programs[program.name].option for mode in chosen)
        raise BadInput(f"one mode must be chosen, got {names}")
    mode = chosen[0] if chosen else MODES[program.default_mode]
    choices = [each.programs[program.name] for each in _offered(program.name) if each is not mode]
    others = [choice.option for choice in choices if choice.is_made(options)]
    return ChosenMode(mode.name, mode.flags(options), [*others, *ignored_options(mode, options)])


def ignored_options(mode: Mode, options: argparse.Namespace) -> list[str]:
    """Options of other modes that the command line sets."""
    others = [option for each in MODES.values() for option in each.options if option not in mode.options]
    return [option.name for option in dict.fromkeys(others) if option.value(options) is not None]


def add_mode_options(parser: argparse._ActionsContainer, modes: Iterable[Mode]) -> None:
    """Add the options that set flags of these modes; several modes may share one."""
    for option in dict.fromkeys(option for mode in modes for option in mode.options):
        option.add_to(parser)


def _offered(prog: str) -> list[Mode]:
    return [mode for mode in MODES.values() if prog in mode.programs]


def _add_modes(parser: argparse.ArgumentParser, prog: str) -> None:
    """Add how each mode is chosen, then the options of all of them; modes may share either."""
    group = parser.add_argument_group("mode and its settings")
    mode_help = "a mode by its name; all: one after the other on one model, then a table (default: by the flags below)"
    group.add_argument("--mode", choices=(*MODES, ALL), help=mode_help)
    choices = [mode.programs[prog] for mode in _offered(prog)]
    for option in dict.fromkeys(choice.option for choice in choices):
        alike = [choice for choice in choices if choice.option == option]
        if alike[0].value is None:
            group.add_argument(option, action="store_true", help=alike[0].help)
        else:
            group.add_argument(option, choices=tuple(choice.value for choice in alike), help=alike[0].help)
    add_mode_options(group, _offered(prog))


def _add_questions(parser: argparse.ArgumentParser, prog: str) -> None:
    add = parser.add_argument_group("questions").add_argument
    add("--question-file", type=Path, help="LLaVA-format JSON (default: 20 questions that come with the package)")
    add("--image-folder", type=Path, help="folder of the question file's images (default: none)")
    add("--num-chunks", type=whole(1), default=1, help="split the questions into this many chunks (default: 1)")
    add("--chunk-idx", type=whole(0), default=0, help="answer only this chunk, counted from 0 (default: 0)")
    add("--num-samples", type=sample_count, default=-1, help="answer only the first so many; -1: all (default: -1)")
    add = parser.add_argument_group("results").add_argument
    exact_help = "judge by equal text, as the original does (default: by the option's letter in answer and label)"
    add("--exact-match", action="store_true", help=exact_help)
    output_help = f"results as JSON (default: {prog}-MODE.json in the current folder, with -chunk-I-of-N before .json)"
    add("--output-file", type=Path, help=output_help)
    add("--resume", action="store_true", help="go on from the partial results of an earlier run (default: begin anew)")
    timeout_help = "under torchrun: give up a rank that sends nothing for so long (default: 600)"
    add("--rank-timeout", type=positive, default=600.0, metavar="SECONDS", help=timeout_help)


def _add_loading(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add(
        "--model-path",
        default="tiny",
        help="checkpoint folder, hub id, tiny, 7b or 13b (default: tiny, random weights)",
    )
    base_help = "folder or hub id of the base, for a checkpoint that is a projector or a LoRA only (default: none)"
    add("--model-base", help=base_help)
    add(
        "--device", default="auto", help="cpu, cuda, cuda:NUMBER or auto, which is CUDA if there is one (default: auto)"
    )
    map_help = "spread by accelerate, not with --device: auto, balanced, balanced_low_0 or sequential (default: none)"
    add("--device-map", help=map_help)
    add("--offload-folder", type=Path, help="folder for what a device map puts on the disk (default: none)")
    add("--dtype", choices=DTYPES, help="auto: the checkpoint's own (default: float16 on CUDA, float32 on the CPU)")
    add("--load-8bit", action="store_true", help="load the decoder in 8 bit, by bitsandbytes on CUDA (default: no)")
    add("--load-4bit", action="store_true", help="load the decoder in 4 bit, by bitsandbytes on CUDA (default: no)")
    add("--attn", choices=ATTENTIONS, default="sdpa", help="attention implementation (default: sdpa)")


def _add_answering(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("answering").add_argument
    add("--conv-mode", choices=tuple(CONVERSATIONS), default="vicuna_v1", help="prompt format (default: vicuna_v1)")
    add("--single-pred-prompt", action="store_true", help="ask for the option's letter only (default: free text)")
    aspect_help = "an image that is no square: crop its middle, as the original does, or pad it (default: crop)"
    add("--image-aspect-ratio", choices=ASPECT_RATIOS, default="crop", help=aspect_help)
    add("--max-new-tokens", type=whole(1), help="longest answer (default: 1024; 8 on a model under 16 layers)")
    cache_help = "compute the whole prompt anew at every token, as the original does (default: keep a KV cache)"
    add("--no-cache", action="store_true", help=cache_help)
    keep_help = "keep attentions and logits, as the first version did: eager, no cache (default: keep nothing)"
    add("--keep-attentions", action="store_true", help=keep_help)
