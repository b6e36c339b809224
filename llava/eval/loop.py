"""The one loop of both programs: check everything, load, answer, write (a rank of several: tell)."""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import vram
from himap import HimapLlavaConfig
from llava.answering import Answerer
from llava.builder import open_checkpoint
from llava.errors import BadInput, shown
from llava.eval.ranks import Rank, Report
from llava.eval.results import Answered, as_json, check_output, print_figures, write_json
from llava.eval.terminal import say
from llava.load_options import LoadOptions
from llava.model_shape import image_token_count
from llava.modes import MODES, default_new_tokens, mode_flags, set_mode
from llava.placement import placed, resolve_device
from llava.prompting import Prompts
from llava.questions import Question, chunk, embedded_questions, load_questions
from vram.replaying.out_of_memory import is_out_of_memory

EMBEDDED_COUNT = 20


@dataclass
class _Progress:
    """What is known so far. Figures of memory that were not read yet are None."""

    answers: list[Answered] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=lambda: {"source": None, "peak_bytes": None})


def evaluate(
    options: argparse.Namespace, mode: str, flags: Mapping[str, Any], *, prog: str, report: Report | None = None
) -> None:
    """Answer the questions that `options` name in `mode`, print the figures and write the results.

    All that needs no weights is checked before they are loaded. When answering ends early (Ctrl-C, out of memory),
    what was answered so far is written, marked incomplete, before the exception goes on. With a `report`, this is one
    rank of several: it answers its share and tells of it there, and nothing is written or printed at the end.
    """
    rank = None if report is None else report.rank
    placement = placed(**_load_options(options, rank))
    device = placement.device
    named = device if rank is None or options.device_map else resolve_device(options.device)
    output = check_output(_output_file(options, mode, prog), options.question_file)
    questions = _questions(options)
    checkpoint = open_checkpoint(options.model_path, options.model_base)
    values = mode_flags(checkpoint.config, mode, **flags)
    prompts = Prompts(checkpoint.tokenizer, checkpoint.config, options.conv_mode, options.single_pred_prompt)
    system_length = values.get(MODES[mode].system_length)
    for question in questions:
        prompts.check(question, system_length)
    new_tokens = options.max_new_tokens or default_new_tokens(checkpoint.config)
    if options.max_new_tokens is not None and new_tokens > checkpoint.context_len:
        raise BadInput(
            f"--max-new-tokens must be at most the model's context of {checkpoint.context_len} tokens, got {new_tokens}"
        )
    model_config = {
        "model_path": options.model_path,
        "model_base": options.model_base,
        "conv_mode": options.conv_mode,
        "single_pred_prompt": options.single_pred_prompt,
        "max_new_tokens": new_tokens,
        "device": str(named),
        "dtype": options.dtype,
        "load_8bit": options.load_8bit,
        "load_4bit": options.load_4bit,
        "attn": "eager" if options.keep_attentions else options.attn,
        "no_cache": options.no_cache or options.keep_attentions,
        "keep_attentions": options.keep_attentions,
        **values,
    }
    if options.device_map is not None:
        model_config["device_map"] = options.device_map
    if rank is None or rank.index == 0:
        say(f"{MODES[mode].technique} WILL BE USED ------")

    so_far = _Progress()

    def write(complete: bool) -> None:
        if report is None:
            content = as_json(
                so_far.answers, complete=complete, mode=mode, memory=so_far.memory, model_config=model_config
            )
            write_json(output, content)

    if report is not None:
        report.header(
            output=str(output),
            prog=prog,
            mode=mode,
            model_config=model_config,
            device=str(device),
            patience=options.rank_timeout,
            questions=[question.id for question in questions],
            digest=_digest(questions),
        )
    try:
        model = checkpoint.load_model(placement)
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
        _answer_all(
            answerer, questions, _devices(model, device), so_far, _draws(mode, values, checkpoint.config), report
        )
    except BaseException as error:
        ended_early = isinstance(error, KeyboardInterrupt | MemoryError) or is_out_of_memory(error)
        if ended_early or so_far.answers:
            write(complete=False)
        raise
    if report is None:
        write(complete=True)
        print_figures(so_far.answers, so_far.memory, output)


def _load_options(options: argparse.Namespace, rank: Rank | None) -> LoadOptions:
    """How to load the model. A rank takes the CUDA device of its number on its node, unless one was named."""
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
    if options.offload_folder is not None and options.device_map is None:
        raise BadInput("--offload-folder needs --device-map, got none")
    if options.device_map is not None:
        if options.device != "auto":
            both = f"{shown(options.device)} and {shown(options.device_map)}"
            raise BadInput(f"--device must not come with --device-map, got {both}")
        if rank is not None and rank.on_node > 1:
            raise BadInput(f"with --device-map a node has one rank, which takes all its cards, got {rank.on_node}")
        load_options |= {"device_map": options.device_map, "offload_folder": options.offload_folder}
    return load_options


def _devices(model: Any, device: torch.device) -> list[str]:
    """Where to measure: the device, or all the cards that a device map has put modules on."""
    device_map = getattr(model, "hf_device_map", {})  # none, where all is on one device
    places = {f"cuda:{place}" if isinstance(place, int) else str(place) for place in device_map.values()}
    return sorted(place for place in places if place.startswith("cuda")) or [str(device)]


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


def _draws(mode: str, values: Mapping[str, Any], config: HimapLlavaConfig) -> Callable[[Question], None]:
    """What answering a question takes from the generator: one number for an image, where farthest points begin."""

    def draw(question: Question) -> None:
        if question.image is not None and MODES[mode].draws(values):
            torch.randint(0, image_token_count(config), (1,))

    return draw


def _digest(questions: Sequence[Question]) -> str:
    """Of the texts and labels, so that ranks on several nodes notice when their files differ."""
    texts = "\0".join(f"{question.text}\0{question.label}" for question in questions)
    return hashlib.sha256(texts.encode()).hexdigest()


def _answer_all(
    answerer: Answerer,
    questions: list[Question],
    devices: list[str],
    so_far: _Progress,
    draw: Callable[[Question], None],
    report: Report | None,
) -> None:
    """Answer the questions, or a rank's share of them. `draw` does to the generator what an answer would do."""
    rank = None if report is None else report.rank
    places = range(len(questions)) if rank is None else rank.share(len(questions))
    silent, name = rank is not None and rank.index > 0, None if rank is None else str(rank)
    with _same_draws(), ExitStack() as stack:
        meters = {device: stack.enter_context(vram.measure(device)) for device in devices}
        bar = stack.enter_context(tqdm(places, unit="question", disable=silent, desc=name))
        drawn = 0
        try:
            for place in bar:
                for others in questions[drawn:place]:
                    draw(others)
                drawn = place + 1
                question = questions[place]
                started = time.perf_counter()
                answer = answerer.answer(question)
                seconds = time.perf_counter() - started
                correct = None if question.label is None else answer.text == question.label
                answered = Answered(question.id, answer.text, question.label, correct, seconds, answer.tokens)
                so_far.answers.append(answered)
                memory = _memory(meters)
                live_bytes = max(meter.live_bytes for meter in meters.values())
                bar.set_postfix(current=vram.format_bytes(live_bytes), peak=vram.format_bytes(memory["peak_bytes"]))
                if report is not None:
                    report.answered(place, answered, memory)
        finally:
            so_far.memory = _memory(meters)
            if report is not None:
                report.memory(so_far.memory)


def _memory(meters: Mapping[str, vram.Measurement]) -> dict[str, Any]:
    """Source and peak, of the device with the highest; with several, the peak of each."""
    peaks = {device: meter.peak_bytes for device, meter in meters.items()}
    worst = max(peaks, key=lambda device: peaks[device])
    memory = {"source": meters[worst].source, "peak_bytes": peaks[worst]}
    return memory if len(meters) == 1 else memory | {"devices": peaks}
