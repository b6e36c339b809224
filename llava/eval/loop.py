"""The one loop of both programs: check everything, load, answer, write."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import vram
from llava.answering import Answerer
from llava.builder import open_checkpoint
from llava.errors import BadInput
from llava.eval.results import Answered, as_json, check_output, summarise, write_json
from llava.modes import default_new_tokens, mode_flags, set_mode
from llava.placement import placed, resolve_device
from llava.prompting import Prompts
from llava.questions import Question, chunk, embedded_questions, load_questions
from vram.oom import is_out_of_memory

EMBEDDED_COUNT = 20


@dataclass
class _Progress:
    """What is known so far. Figures of memory that were not read yet are None."""

    answers: list[Answered] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=lambda: {"source": None, "peak_bytes": None})


def evaluate(options: argparse.Namespace, mode: str, flags: Mapping[str, Any], *, prog: str) -> None:
    """Answer the questions that `options` name in `mode`, print the figures and write the results.

    All that needs no weights is checked before they are loaded. When answering ends early (Ctrl-C, out of memory),
    what was answered so far is written, marked incomplete, before the exception goes on.
    """
    how = {
        "device": resolve_device(options.device),
        "dtype": options.dtype,
        "attn_implementation": options.attn,
        "load_8bit": options.load_8bit,
        "load_4bit": options.load_4bit,
    }
    device = placed(**how).device
    output = check_output(_output_file(options, mode, prog), options.question_file)
    questions = _questions(options)
    checkpoint = open_checkpoint(options.model_path, options.model_base)
    values = mode_flags(checkpoint.config, mode, **flags)
    prompts = Prompts(checkpoint.tokenizer, checkpoint.config, options.conv_mode, options.single_pred_prompt)
    system_length = values.get("hmap_v_sys_length", values.get("custom_sys_length"))
    for question in questions:
        prompts.check(question, system_length)
    new_tokens = options.max_new_tokens or default_new_tokens(checkpoint.config)
    model_config = {
        "model_path": options.model_path,
        "model_base": options.model_base,
        "conv_mode": options.conv_mode,
        "single_pred_prompt": options.single_pred_prompt,
        "max_new_tokens": new_tokens,
        "device": str(device),
        "dtype": options.dtype,
        "load_8bit": options.load_8bit,
        "load_4bit": options.load_4bit,
        "attn": "eager" if options.keep_attentions else options.attn,
        "no_cache": options.no_cache or options.keep_attentions,
        "keep_attentions": options.keep_attentions,
        **values,
    }
    print(f"{_technique(mode)} WILL BE USED ------", flush=True)

    so_far = _Progress()

    def write(complete: bool) -> None:
        content = as_json(so_far.answers, complete=complete, mode=mode, memory=so_far.memory, model_config=model_config)
        write_json(output, content)

    try:
        model = checkpoint.load_model(**how)
        set_mode(model, mode, **flags)
        answerer = Answerer(
            checkpoint.tokenizer,
            model,
            checkpoint.image_processor,
            conv_mode=options.conv_mode,
            single_pred_prompt=options.single_pred_prompt,
            max_new_tokens=new_tokens,
            use_cache=not options.no_cache,
            keep_attentions=options.keep_attentions,
        )
        _answer_all(answerer, questions, str(device), so_far)
    except BaseException as error:
        ended_early = isinstance(error, KeyboardInterrupt | MemoryError) or is_out_of_memory(error)
        if ended_early or so_far.answers:
            write(complete=False)
        raise
    write(complete=True)
    _print_figures(so_far, output)


def _technique(mode: str) -> str:
    techniques = {"baseline": "NO TOKEN PRUNING TECHNIQUE", "himap": "HiMAP TECHNIQUE"}
    return techniques.get(mode, "CUSTOM TOKEN SELECTION TECHNIQUE")


def _output_file(options: argparse.Namespace, mode: str, prog: str) -> Path:
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


@contextmanager
def _same_draws() -> Iterator[None]:
    """Random choices inside (the first of the farthest points) are the same in every run, and leave no trace."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def _answer_all(answerer: Answerer, questions: list[Question], device: str, so_far: _Progress) -> None:
    with _same_draws(), vram.measure(device) as memory, tqdm(questions, unit="question") as bar:
        so_far.memory["source"] = memory.source
        try:
            for question in bar:
                started = time.perf_counter()
                answer = answerer.answer(question)
                seconds = time.perf_counter() - started
                correct = None if question.label is None else answer.text == question.label
                so_far.answers.append(
                    Answered(question.id, answer.text, question.label, correct, seconds, answer.tokens)
                )
                bar.set_postfix(current=vram.format_bytes(memory.live_bytes), peak=vram.format_bytes(memory.peak_bytes))
        finally:
            so_far.memory["peak_bytes"] = memory.peak_bytes


def _print_figures(so_far: _Progress, output: Path) -> None:
    summary = summarise(so_far.answers)
    accuracy, latency = "no labels", "no questions"
    if summary.accuracy is not None:
        accuracy = f"{summary.accuracy:.2%} ({summary.correct_samples} correct)"
    if summary.avg_latency is not None:
        latency = f"{summary.avg_latency:.3f} s"
    print(f"Questions answered: {summary.total_samples}")
    print(f"Accuracy: {accuracy}")
    print(f"Average latency: {latency}")
    print(f"Peak memory: {vram.format_bytes(so_far.memory['peak_bytes'])} ({so_far.memory['source']})")
    print(f"Results: {output}")
