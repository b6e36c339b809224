"""The one loop of all programs: check everything, load, answer, and write; or, as one rank of several, report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

import vram
from himap import HimapLlavaForConditionalGeneration
from himap.flops import flops_ratio, prefill_flops, rough_flops
from llava.answering import Answerer
from llava.eval.preparation import Run, prepare
from llava.eval.ranks import ReportWriter
from llava.eval.results import Answered, as_json, print_figures, write_json
from llava.eval.terminal import say
from llava.judging import judge
from llava.model_shape import image_token_count
from llava.modes import MODES, set_mode
from llava.questions import Question
from vram.replaying.out_of_memory import is_out_of_memory


@dataclass
class _Progress:
    """Answers and memory so far. Figures of memory that were not read yet are None."""

    answers: list[Answered] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=lambda: {"source": None, "peak_bytes": None})

    def write(self, run: Run, *, complete: bool) -> None:
        """Write the results file. Raises BadInput where that fails."""
        content = as_json(
            self.answers, complete=complete, mode=run.mode, memory=self.memory, model_config=run.model_config
        )
        write_json(run.output, content)


def evaluate(
    options: argparse.Namespace, mode: str, flags: Mapping[str, Any], *, prog: str, report: ReportWriter | None = None
) -> None:
    """Answer the questions that `options` name in `mode`, print the figures and write the results.

    All that needs no weights is checked before they are loaded. When answering ends early (Ctrl-C, out of memory),
    the answers so far are written, marked incomplete, before the exception goes on. With a `report`, this is one rank
    of several: it answers its share and reports it, and nothing is written or printed at the end.
    """
    rank = None if report is None else report.rank
    run = prepare(options, mode, flags, prog, rank)
    if rank is None or rank.index == 0:
        say(f"{MODES[mode].technique} WILL BE USED ------")
    if report is not None:
        report.header(**run.header())
    so_far = _Progress()
    try:
        _answer_all(_answerer(run, flags), run, so_far, report)
    except BaseException as error:
        ended_early = isinstance(error, KeyboardInterrupt | MemoryError) or is_out_of_memory(error)
        if report is None and (ended_early or so_far.answers):
            so_far.write(run, complete=False)
        raise
    if report is None:
        so_far.write(run, complete=True)
        print_figures(so_far.answers, so_far.memory, run.output)


def _answerer(run: Run, flags: Mapping[str, Any]) -> Answerer:
    """Load the model, and set it to the run's mode."""
    model = run.checkpoint.load_model(run.placement)
    set_mode(model, run.mode, **flags)
    return Answerer(
        run.checkpoint.tokenizer,
        model,
        run.checkpoint.image_processor,
        conv_mode=run.options.conv_mode,
        single_pred_prompt=run.options.single_pred_prompt,
        max_new_tokens=run.new_tokens,
        use_cache=not run.options.no_cache,
        keep_attentions=run.options.keep_attentions,
    )


def _answer_all(answerer: Answerer, run: Run, so_far: _Progress, report: ReportWriter | None) -> None:
    """Answer the questions, or a rank's share of them."""
    rank = None if report is None else report.rank
    places = range(len(run.questions)) if rank is None else rank.share(len(run.questions))
    is_silent, name = rank is not None and rank.index > 0, None if rank is None else str(rank)
    with _fixed_seed(), ExitStack() as stack:
        devices = _devices(answerer.model, run.placement.device)
        meters = {device: stack.enter_context(vram.measure(device)) for device in devices}
        bar = stack.enter_context(tqdm(places, unit="question", disable=is_silent, desc=name))
        try:
            for place in _with_draws_of_others(run, bar):
                answered = _answer(answerer, run.questions[place], exact_match=run.options.exact_match)
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


def _answer(answerer: Answerer, question: Question, *, exact_match: bool) -> Answered:
    started = time.perf_counter()
    answer = answerer.answer(question)
    whole_seconds = time.perf_counter() - started
    ratio, info = _flops(answerer, question)
    judged = judge(answer.text, question.label, question.text, exact_match=exact_match)
    return Answered(
        question.id,
        answer.text,
        question.label,
        judged.correct,
        answer.seconds,
        answer.tokens,
        judged.judged_by,
        judged.letter,
        preparation_seconds=whole_seconds - answer.seconds,
        flops_ratio=ratio,
        flops_info=info,
    )


def _flops(answerer: Answerer, question: Question) -> tuple[float, float]:
    """The prompt's share of baseline's FLOPs, counted and as the original program estimates it."""
    config, ids = answerer.model.config, answerer.prompts.ids(question)
    is_image = [token == config.image_token_id for token in ids]
    image_tokens = sum(is_image)
    system = is_image.index(True) if image_tokens else 0
    counts = {"sys": system, "img": image_tokens, "text": len(ids) - system - image_tokens}
    exact, rough = (flops_ratio(config.text_config, flops=flops, **counts) for flops in (prefill_flops, rough_flops))
    return exact, rough


@contextmanager
def _fixed_seed() -> Iterator[None]:
    """Random choices inside (the first of the farthest points) are the same in every run, and leave no trace."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def _with_draws_of_others(run: Run, places: Iterable[int]) -> Iterator[int]:
    """`places` among the questions, in ascending order; before each, the generator is where one process would have it.

    Answers of other ranks would have drawn one number for each image, if the mode does.
    """
    drawn = 0
    for place in places:
        for question in run.questions[drawn:place]:
            if question.image is not None and MODES[run.mode].draws(run.flags):
                torch.randint(0, image_token_count(run.checkpoint.config), (1,))
        drawn = place + 1
        yield place


def _devices(model: HimapLlavaForConditionalGeneration, device: torch.device) -> list[str]:
    """Devices to measure: the model's, or all the cards that a device map has put modules on."""
    device_map = getattr(model, "hf_device_map", {})  # none, where all is on one device
    places = {f"cuda:{place}" if isinstance(place, int) else str(place) for place in device_map.values()}
    return sorted(place for place in places if place.startswith("cuda")) or [str(device)]


def _memory(meters: Mapping[str, vram.Measurement]) -> dict[str, Any]:
    """Source and peak, of the device with the highest; with several, the peak of each."""
    peaks = {device: meter.peak_bytes for device, meter in meters.items()}
    worst = max(peaks, key=lambda device: peaks[device])
    memory = {"source": meters[worst].source, "peak_bytes": peaks[worst]}
    return memory if len(meters) == 1 else memory | {"devices": peaks}
