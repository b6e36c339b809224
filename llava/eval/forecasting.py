"""Forecasting the memory of a list of answers: simulate, draw conclusions, write and print them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict
from itertools import cycle, islice
from typing import Any

import torch

from himap import HimapLlavaConfig
from llava.answer_traces import MAX_BATCH_TOKENS, AnswerTraces, Prompt, Workload
from llava.errors import BadInput, shown
from llava.eval.command_line import ALL
from llava.eval.forecast_report import (
    Conclusions,
    Pair,
    Rows,
    as_json,
    assumptions,
    longest_pair,
    mode_done,
    modes_fit,
    no_room,
    print_conclusions,
    print_samples,
    save_snapshot,
    spare_of,
)
from llava.eval.results import write_json
from llava.eval.terminal import say
from llava.forecast import (
    Forecast,
    SampleForecast,
    max_answer_tokens,
    smallest_card,
    token_bytes,
    weights_bytes,
)
from llava.forecast_config import SYSTEM_TOKENS, check_prompt_tokens, config_of, default_prompt_tokens, tokenizer_of
from llava.mode_table import ModeFigures, mode_rows, table_lines
from llava.model_shape import image_token_count
from llava.modes import MODES, mode_flags
from llava.prompt_figures import prompt_figures
from llava.prompting import Prompts
from llava.questions import load_questions
from vram.cards import Card, smallest_that_fits
from vram.exit_codes import FINE, OUT_OF_MEMORY
from vram.forecasting.playing import NoRoom
from vram.forecasting.progress import Progress
from vram.simulated.remarks import merged
from vram.text import terminal_columns

_PROGRAM = "forecast-memory"
_NOT_FORECAST = dict.fromkeys(("prefill", "decode", "accuracy"), "nothing is computed on a simulated card")
_NOT_FORECAST["KV cache after the prompt"] = "none is kept"


def run_forecast(options: argparse.Namespace) -> int:
    """Forecast what the checked `options` of `forecast-memory` describe; returns the exit code. Raises BadInput."""
    config = config_of(options.model)
    workload = _workload(options, config, options.mode)
    prompts = _prompts(options, config)
    _check_lengths(options, config, prompts)
    say(assumptions([workload], prompts))
    pairs, count = _pairs(prompts, options)
    answers = AnswerTraces(workload, config)
    try:
        forecast = Forecast(answers, logged=options.snapshot is not None)
    except NoRoom as error:
        return _report_no_room(options, answers, error, pairs, count)
    progress = Progress(_PROGRAM)
    samples = _forecast_all(forecast, islice(cycle(pairs), count), count, progress)
    if options.snapshot is not None:
        save_snapshot(options.snapshot, forecast)
    print_samples(workload.card, samples)
    conclusions = _conclude(answers, samples, pairs, count, progress)
    if options.output_file is not None:
        write_json(options.output_file, as_json(answers, samples, conclusions))
    print_conclusions(forecast, samples, pairs, conclusions, progress)
    return OUT_OF_MEMORY if conclusions.out_of_memory else FINE


def forecast_modes(options: argparse.Namespace) -> int:
    """The same in every mode, each on an empty card, and the table of all; without the conclusions on single modes."""
    config = config_of(options.model)
    prompts = _prompts(options, config)
    _check_lengths(options, config, prompts)
    workloads = [_workload(options, config, mode) for mode in MODES]  # all checked before one is simulated
    say(assumptions(workloads, prompts))
    pairs, count = _pairs(prompts, options)
    figures, modes, remarks = [], {}, []
    progress = Progress(_PROGRAM)
    for workload in workloads:
        answers = AnswerTraces(workload, config)
        try:
            forecast = Forecast(answers)
        except NoRoom as error:
            return _report_no_room(options, answers, error, pairs, count)
        samples = list(_until_full(forecast, islice(cycle(pairs), count), count, progress))
        figures.append(_mode_figures(workload, config, samples, [prompt for prompt, _ in pairs[:count]]))
        modes[workload.mode] = samples
        remarks.append(answers.remarks)
        say(mode_done(workload.mode, samples))
    for line in (modes_fit(options.card, modes), *merged(remarks)):
        say(line)
    rows = mode_rows(figures)
    for line in table_lines(rows, terminal_columns(sys.stdout.isatty()), _NOT_FORECAST):
        say(line)
    if options.output_file is not None:
        answered = {mode: [asdict(sample) for sample in samples] for mode, samples in modes.items()}
        content = {"schema": 1, "simulated": True, "mode": ALL, "modes": [row.to_json() for row in rows]}
        write_json(options.output_file, content | {"samples": answered, "remarks": merged(remarks)})
    return OUT_OF_MEMORY if any(each.out_of_memory for each in figures) else FINE


def _mode_figures(
    workload: Workload, config: HimapLlavaConfig, samples: Sequence[SampleForecast], prompts: Sequence[Prompt]
) -> ModeFigures:
    """The highest peak of the samples; KV cache and FLOPs of the prompts, by formula. No times, and no answers."""
    text = deepcopy(config.text_config)
    for name, value in mode_flags(config, workload.mode, **workload.flags).items():
        setattr(text, name, value)
    cache_bytes, flops_ratio = prompt_figures(text, workload.dtype, [_lengths(prompt, config) for prompt in prompts])
    full = bool(samples[-1].out_of_memory)
    return ModeFigures(
        workload.mode,
        peak_bytes=None if full else max(sample.peak_bytes for sample in samples),
        cache_bytes=workload.batch * cache_bytes if workload.use_cache else None,
        flops_ratio=flops_ratio,
        out_of_memory=full,
    )


def _lengths(prompt: Prompt, config: HimapLlavaConfig) -> dict[str, int]:
    """Tokens of the prompt's parts."""
    if not prompt.image:
        return {"sys": 0, "img": 0, "text": prompt.tokens}
    image_tokens = image_token_count(config)
    return {"sys": SYSTEM_TOKENS, "img": image_tokens, "text": prompt.tokens - SYSTEM_TOKENS - image_tokens}


def _report_no_room(
    options: argparse.Namespace, answers: AnswerTraces, error: NoRoom, pairs: Sequence[Pair], count: int
) -> int:
    """Write and print that the card does not hold the weights, and which holds them and the samples."""
    needed_bytes = weights_bytes(answers)
    progress = Progress(_PROGRAM)
    progress("trying listed cards")
    fitting, card_known = _larger_card(answers, pairs, count)
    progress()
    fitting = fitting if card_known else smallest_that_fits(needed_bytes)
    conclusions = Conclusions(token_bytes(answers), None, fitting, out_of_memory=True, card_known=card_known)
    if options.output_file is not None:
        write_json(options.output_file, as_json(answers, [], conclusions))
    no_room(needed_bytes, answers.workload.card, error, conclusions)
    return OUT_OF_MEMORY


def _workload(options: argparse.Namespace, config: HimapLlavaConfig, mode: str) -> Workload:
    return Workload(
        model=options.model,
        mode=mode,
        card=options.card,
        dtype=getattr(torch, options.dtype),
        attention="eager" if options.keep_attentions else options.attn,
        batch=options.batch,
        use_cache=not (options.no_cache or options.keep_attentions),
        keep_attentions=options.keep_attentions,
        every_step=options.every_step,
        flags=_flags(options, config, mode),
    )


def _flags(options: argparse.Namespace, config: HimapLlavaConfig, mode: str) -> dict[str, Any]:
    """The mode's flags that the command line sets, checked."""
    flags = MODES[mode].flags(options)
    system = mode_flags(config, mode, **flags).get(MODES[mode].system_length)
    if system not in (None, SYSTEM_TOKENS):
        raise BadInput(f"the system length must be the {SYSTEM_TOKENS} tokens before the image, got {system}")
    return flags


def _prompts(options: argparse.Namespace, config: HimapLlavaConfig) -> list[Prompt]:
    """One prompt, or that of every question, its tokens counted by the model's own tokenizer."""
    if options.question_file is None:
        tokens = options.prompt_tokens or default_prompt_tokens(config)
        check_prompt_tokens(config, tokens)
        return [Prompt(tokens)]
    prompts = Prompts(tokenizer_of(options.model), config)
    questions = load_questions(options.question_file, options.image_folder)[: options.samples]
    return [Prompt(len(prompts.ids(question)), question.image is not None) for question in questions]


def _check_lengths(options: argparse.Namespace, config: HimapLlavaConfig, prompts: Sequence[Prompt]) -> None:
    """Raise BadInput where prompt and answer are longer than the context, or a batch than a simulation follows."""
    longest = max(prompt.tokens for prompt in prompts) + max(options.answers)
    if longest > (context := config.text_config.max_position_embeddings):
        raise BadInput(f"prompt and answer must be at most the context of {context} tokens, got {longest}")
    if options.batch * longest > MAX_BATCH_TOKENS:
        raise BadInput(
            f"a batch must have at most {MAX_BATCH_TOKENS:,} tokens with its answers, got "
            f"{shown(options.batch)} x {longest:,}"
        )


def _pairs(prompts: Sequence[Prompt], options: argparse.Namespace) -> tuple[list[Pair], int]:
    """Each item of the longer list once, with those of the other over and over; and how many samples there are.

    Of a list that is longer than the samples, as many as there are samples.
    """
    answers = options.answers
    pairs = list(islice(zip(cycle(prompts), cycle(answers), strict=False), max(len(prompts), len(answers))))
    return pairs[: options.samples], options.samples or len(pairs)


def _forecast_all(forecast: Forecast, pairs: Iterator[Pair], count: int, progress: Progress) -> list[SampleForecast]:
    """Forecast one sample after the other, until the card is full, and print the rows of the table."""
    samples: list[SampleForecast] = []
    with Rows() as rows:
        for sample in _until_full(forecast, pairs, count, progress):
            samples.append(sample)
            rows.add(sample)
    return samples


def _until_full(forecast: Forecast, pairs: Iterator[Pair], count: int, progress: Progress) -> Iterator[SampleForecast]:
    """Forecast one sample after the other, until the card is full."""
    for number, (prompt, tokens) in enumerate(pairs, start=1):
        progress(f"{forecast.answers.workload.mode}, sample {number} of {count}")
        sample = forecast.answer(prompt, tokens)
        progress()
        yield sample
        if sample.out_of_memory:
            return


def _conclude(
    answers: AnswerTraces, samples: Sequence[SampleForecast], pairs: Sequence[Pair], count: int, progress: Progress
) -> Conclusions:
    """Conclusions from all `samples`, which were to be `count`."""
    counts = answers.linear, answers.stepwise  # before more answers are replayed
    prompt, longest = longest_pair(pairs)
    # Only where a long answer was simulated anyway: its ends take longer than all the rest of short ones.
    is_known = answers.linear > 0 and answers.is_long(longest)
    if is_known:
        progress("trying longer answers")
    most = max_answer_tokens(answers, prompt) if is_known else None
    failed = bool(samples[-1].out_of_memory)
    if failed:
        progress("trying listed cards")
        fitting, card_known = _larger_card(answers, pairs, count)
    else:
        fitting, card_known = smallest_that_fits(max(each.reserved_bytes for each in samples)), True
    progress()
    spare_bytes = spare_of(answers.workload.card, samples)
    return Conclusions(token_bytes(answers), most, fitting, failed, spare_bytes, card_known, *counts)


def _larger_card(answers: AnswerTraces, pairs: Sequence[Pair], count: int) -> tuple[Card | None, bool]:
    """The smallest listed card that fits all samples, and whether that is known: all were simulated to their ends."""
    if not all(answers.reaches_end(*pair) for pair in pairs[:count]):
        return None, False
    larger_bytes = answers.workload.card.total_bytes + 1
    return smallest_card(answers, islice(cycle(pairs), count), larger_bytes), True
