"""Preparing a run: everything that can be checked before weights are loaded."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llava.builder import open_checkpoint
from llava.checkpoint import Checkpoint
from llava.errors import BadInput, shown
from llava.eval.command_line import ALL
from llava.eval.ranks import Rank
from llava.eval.results import check_output
from llava.eval.resuming import Earlier, read_earlier
from llava.load_options import LoadOptions
from llava.modes import MODES, default_new_tokens, mode_flags
from llava.placement import Placement, placed, resolve_device
from llava.prompting import Prompts
from llava.questions import Question, chunk, embedded_questions, load_questions

EMBEDDED_COUNT = 20


@dataclass(frozen=True)
class Run:
    """A run that is ready to begin. `flags` are all of the mode's, `chosen_flags` those that the command line sets;
    `model_config` is as in the results.

    `questions_summary` has the questions' count and digest, which let runs and ranks notice when theirs differ.
    """

    options: argparse.Namespace
    mode: str
    flags: Mapping[str, Any]
    output: Path
    questions: Sequence[Question]
    checkpoint: Checkpoint
    placement: Placement
    new_tokens: int
    model_config: Mapping[str, Any]
    questions_summary: Mapping[str, Any]
    chosen_flags: Mapping[str, Any]
    earlier: Earlier | None = None

    def header(self) -> dict[str, Any]:
        """The run in a rank's report."""
        return {
            "output": str(self.output),
            "mode": self.mode,
            "model_config": self.model_config,
            "device": str(self.placement.device),
            "timeout": self.options.rank_timeout,
            "questions": [question.id for question in self.questions],
            "digest": self.questions_summary["digest"],
            "earlier": None if self.earlier is None else dict(self.earlier.memory),
        }


def prepare(options: argparse.Namespace, mode: str, flags: Mapping[str, Any], prog: str, rank: Rank | None) -> Run:
    """The run that the command line describes; `flags` are those it sets. Raises BadInput."""
    outputs = {mode: output_file(options, mode, prog)}
    return next(_runs(options, {mode: flags}, outputs, prog, rank))


def prepare_all(options: argparse.Namespace, prog: str) -> tuple[Path, list[Run]]:
    """The file for the table of all modes, and a run for each, of one checkpoint and the same questions.

    Each has a results file of its own, beside that of the table where the command line names one. Raises BadInput.
    """
    table = output_file(options, ALL, prog)
    outputs = {mode: output_file(options, mode, prog) for mode in MODES}
    if options.output_file is not None:
        outputs = {mode: table.with_name(f"{table.stem}-{mode}{table.suffix}") for mode in MODES}
    flags = {mode.name: mode.flags(options) for mode in MODES.values()}
    return check_output(table, options.question_file), list(_runs(options, flags, outputs, prog, None))


def _runs(
    options: argparse.Namespace,
    flags: Mapping[str, Mapping[str, Any]],
    outputs: Mapping[str, Path],
    prog: str,
    rank: Rank | None,
) -> Iterator[Run]:
    """A run for each mode in `flags`."""
    placement = placed(**load_options(options, rank))
    files = {mode: check_output(file, options.question_file) for mode, file in outputs.items()}
    questions = _questions(options)
    checkpoint = open_checkpoint(options.model_path, options.model_base)
    prompts = Prompts(checkpoint.tokenizer, checkpoint.config, options.conv_mode, options.single_pred_prompt)
    named = placement.device if rank is None or options.device_map else resolve_device(options.device)
    summary = _summary(questions, options.image_folder)
    for mode, chosen in flags.items():
        values = mode_flags(checkpoint.config, mode, **chosen)
        for question in questions:
            prompts.check(question, values.get(MODES[mode].system_length))
        new_tokens = _new_tokens(options, checkpoint)
        config = _model_config(options, new_tokens, named) | values | _original_keys(prog, values)
        if options.device_map is not None:
            config["device_map"] = options.device_map
        earlier = None
        if options.resume:
            earlier = read_earlier(files[mode], mode=mode, model_config=config, questions=summary)
        parts = (questions, checkpoint, placement, new_tokens, config, summary, chosen, earlier)
        yield Run(options, mode, values, files[mode], *parts)


def _summary(questions: Sequence[Question], image_folder: Path | None) -> dict[str, Any]:
    """Count and digest of the questions, the same wherever the image folder is on a machine."""
    digest = hashlib.sha256()
    for each in questions:
        image = each.image
        if isinstance(image, Path) and image_folder is not None:
            image = image.relative_to(image_folder.resolve())
        digest.update(json.dumps([each.id, each.text, each.label, str(image)]).encode())
    return {"count": len(questions), "digest": digest.hexdigest()}


def load_options(options: argparse.Namespace, rank: Rank | None) -> LoadOptions:
    """Options of loading the model. A rank takes the CUDA device of its number on its node, unless one was named."""
    _check_device_map(options, rank)
    device = resolve_device(options.device)
    if rank is not None and str(device) == "cuda":
        device = resolve_device(f"cuda:{rank.local}")
    if device.type == "cuda" and rank is not None:
        torch.cuda.set_device(device)  # or every rank would have a context on the first card too
    load_options: LoadOptions = {
        "device": device,
        "dtype": options.dtype,
        "attn_implementation": options.attn,
        "load_8bit": options.load_8bit,
        "load_4bit": options.load_4bit,
    }
    if options.device_map is not None:
        load_options |= {"device_map": options.device_map, "offload_folder": options.offload_folder}
    return load_options


def _check_device_map(options: argparse.Namespace, rank: Rank | None) -> None:
    """Raise BadInput where the options beside --device-map contradict it."""
    if options.device_map is None:
        if options.offload_folder is not None:
            raise BadInput("--offload-folder needs --device-map, got none")
        return
    if options.device != "auto":
        both = f"{shown(options.device)} and {shown(options.device_map)}"
        raise BadInput(f"--device must not come with --device-map, got {both}")
    if rank is not None and rank.on_node > 1:
        raise BadInput(f"with --device-map a node has one rank, which takes all its cards, got {rank.on_node}")


def _new_tokens(options: argparse.Namespace, checkpoint: Checkpoint) -> int:
    """The longest answer, in tokens."""
    if options.max_new_tokens is None:
        return default_new_tokens(checkpoint.config)
    if options.max_new_tokens > checkpoint.context_len:
        raise BadInput(
            f"--max-new-tokens must be at most the model's context of {checkpoint.context_len} tokens, "
            f"got {options.max_new_tokens}"
        )
    return int(options.max_new_tokens)


def _model_config(options: argparse.Namespace, new_tokens: int, device: torch.device) -> dict[str, Any]:
    """Settings that the results name, without the mode's flags."""
    return {
        "model_path": options.model_path,
        "model_base": options.model_base,
        "conv_mode": options.conv_mode,
        "single_pred_prompt": options.single_pred_prompt,
        "exact_match": options.exact_match,
        "image_aspect_ratio": options.image_aspect_ratio,
        "max_new_tokens": new_tokens,
        "device": str(device),
        "dtype": options.dtype,
        "load_8bit": options.load_8bit,
        "load_4bit": options.load_4bit,
        "attn": "eager" if options.keep_attentions else options.attn,
        "no_cache": options.no_cache or options.keep_attentions,
        "keep_attentions": options.keep_attentions,
    }


def _original_keys(prog: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of all modes of the program `prog` as the original's results name them; None of those that are off."""
    offered = [mode for mode in MODES.values() if prog in mode.programs]
    return {
        key: flags.get(flag, False if flag == mode.switch else None)
        for mode in offered
        for key, flag in mode.original_keys.items()
    }


def output_file(options: argparse.Namespace, mode: str, prog: str) -> Path:
    """The file that the command line names, or the default one of `mode`."""
    if options.output_file is not None:
        return Path(options.output_file)
    # Chunks run side by side: each has its own file.
    part = f"-chunk-{options.chunk_idx}-of-{options.num_chunks}" if options.num_chunks > 1 else ""
    return Path(f"{prog}-{mode}{part}.json")


def _questions(options: argparse.Namespace) -> list[Question]:
    if options.question_file is not None:
        questions = load_questions(options.question_file, options.image_folder)
    elif options.image_folder is not None:
        raise BadInput(f"--image-folder needs --question-file, got only {str(options.image_folder)!r}")
    else:
        questions = embedded_questions(EMBEDDED_COUNT)
    questions = chunk(questions, options.num_chunks, options.chunk_idx)
    return questions if options.num_samples == -1 else questions[: options.num_samples]
