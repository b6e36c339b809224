"""The one loop of all programs: check everything, load, answer, and write; or, as one rank of several, report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import vram
from himap import HimapLlavaForConditionalGeneration
from himap.flops import cache_bytes, flops_ratio, prefill_flops, rough_flops
from llava.answering import Answerer
from llava.eval.beginning import print_beginning
from llava.eval.preparation import Run, prepare
from llava.eval.ranks import ReportWriter
from llava.eval.results import Answered, as_json, print_figures, with_earlier, write_result
from llava.judging import judge
from llava.model_shape import image_token_count
from llava.modes import MODES, set_mode
from vram.replaying.out_of_memory import is_out_of_memory


@dataclass
class Progress:
    """Answers by the place of their question, and memory, so far. Figures that were not read yet are None."""

    run: Run
    answers: dict[int, Answered] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=lambda: {"source": None, "peak_bytes": None})

    @property
    def whole_memory(self) -> dict[str, Any]:
        """Memory, an earlier run's included."""
        return with_earlier(self.memory, None if self.run.earlier is None else self.run.earlier.memory)

    @property
    def in_order(self) -> list[Answered]:
        """Answers in the order of their questions."""
        return [self.answers[place] for place in sorted(self.answers)]

    def write(self, *, complete: bool) -> Path:
        """Write the results, and print their figures if they are complete. The file. Raises BadInput."""
        run, memory, answers = self.run, self.whole_memory, self.in_order
        content = as_json(
            answers,
            complete=complete,
            mode=run.mode,
            memory=memory,
            model_config=run.model_config,
            questions=run.questions_summary,
        )
        file = write_result(run.output, content)
        if complete:
            print_figures(answers, memory, file)
        return file


def evaluate(
    options: argparse.Namespace, mode: str, flags: Mapping[str, Any], *, prog: str, report: ReportWriter | None = None
) -> None:
    """Answer the questions that `options` name in `mode`, print the figures and write the results.

    All that needs no weights is checked before they are loaded. When answering ends early (Ctrl-C, out of memory),
    the answers so far are written, marked incomplete, before the exception goes on with a note that says where. With a
    `report`, this is one rank of several: it answers its share and reports it, and nothing is written or printed at the
    end.
    """
    run = prepare(options, mode, flags, prog, None if report is None else report.rank)
    answer_run(run, lambda: answerer_of(run, run.checkpoint.load_model(run.placement)), report)


def answer_run(run: Run, load: Callable[[], Answerer], report: ReportWriter | None = None) -> Progress:
    """The same for a run that is ready to begin; `load` makes its answerer, and is called if anything is to do."""
    rank = None if report is None else report.rank
    if rank is None or rank.index == 0:
        print_beginning(run)
    if report is not None:
        report.header(**run.header())
    so_far = Progress(run, dict(run.earlier.answers) if run.earlier else {})
    try:
        _answer_all(run, load, so_far, report)
    except BaseException as error:
        ended_early = isinstance(error, KeyboardInterrupt | MemoryError) or is_out_of_memory(error)
        if report is None and (ended_early or so_far.answers):
            file = so_far.write(complete=False)
            count = f"{len(so_far.answers)} of {len(run.questions)} answers"
            error.add_note(f"{count} are in {file}, marked incomplete; --resume goes on from there")
        raise
    if report is None:
        so_far.write(complete=True)
    return so_far


def answerer_of(run: Run, model: HimapLlavaForConditionalGeneration, max_new_tokens: int | None = None) -> Answerer:
    """Set the loaded model to the run's mode; the run's answers are as long as its options say, or the limit given."""
    set_mode(model, run.mode, **run.chosen_flags)
    return Answerer(
        run.checkpoint.tokenizer,
        model,
        run.checkpoint.image_processor,
        conv_mode=run.options.conv_mode,
        single_pred_prompt=run.options.single_pred_prompt,
        max_new_tokens=max_new_tokens or run.new_tokens,
        use_cache=not run.options.no_cache,
        keep_attentions=run.options.keep_attentions,
        pad_images=run.options.image_aspect_ratio == "pad",
    )


def _answer_all(run: Run, load: Callable[[], Answerer], so_far: Progress, report: ReportWriter | None) -> None:
    """Load the model and answer the questions, or a rank's share of them; answers of an earlier run are kept."""
    rank = None if report is None else report.rank
    share = range(len(run.questions)) if rank is None else rank.share(len(run.questions))
    if report is not None:
        for place in share:
            if place in so_far.answers:
                report.answered(place, so_far.answers[place], so_far.memory)
    places = [place for place in share if place not in so_far.answers]
    if places or run.earlier is None:
        _answer_places(load(), places, so_far, report)


def _answer_places(answerer: Answerer, places: Sequence[int], so_far: Progress, report: ReportWriter | None) -> None:
    rank, run = None if report is None else report.rank, so_far.run
    is_silent, name = rank is not None and rank.index > 0, None if rank is None else str(rank)
    with fixed_seed(), ExitStack() as stack:
        devices = _devices(answerer.model, run.placement.device)
        meters = {device: stack.enter_context(vram.measure(device)) for device in devices}
        bar = stack.enter_context(tqdm(places, unit="question", disable=is_silent, desc=name))
        try:
            for place in _with_draws_of_others(run, bar):
                answered = _answer(answerer, run, place)
                so_far.answers[place] = answered
                memory = _memory(meters)
                live_bytes = max(meter.live_bytes for meter in meters.values())
                bar.set_postfix(current=vram.format_bytes(live_bytes), peak=vram.format_bytes(memory["peak_bytes"]))
                if report is not None:
                    report.answered(place, answered, memory)
        finally:
            so_far.memory = _memory(meters)
            if report is not None:
                report.memory(so_far.memory)


def _answer(answerer: Answerer, run: Run, place: int) -> Answered:
    question = run.questions[place]
    started = time.perf_counter()
    answer = answerer.answer(question)
    whole_seconds = time.perf_counter() - started
    config, lengths = answerer.model.config.text_config, answerer.prompts.lengths(question)
    ratio, info = (flops_ratio(config, flops=flops, **lengths) for flops in (prefill_flops, rough_flops))
    has_cache = not run.model_config["no_cache"]
    judged = judge(answer.text, question.label, question.text, exact_match=run.options.exact_match)
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
        place=place,
        prefill_seconds=answer.prefill_seconds,
        cache_bytes=cache_bytes(config, answerer.model.dtype, **lengths) if has_cache else None,
    )


@contextmanager
def fixed_seed() -> Iterator[None]:
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
