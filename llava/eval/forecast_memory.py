"""How much GPU memory answers would need, and which cards they fit; needs no GPU and no weights."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.argument_types import token_counts, whole
from llava.errors import BadInput, shown
from llava.eval.command_line import Parser
from llava.eval.terminal import say
from llava.modes import MODES
from vram.exit_codes import BAD_INPUT, INTERRUPTED, OUR_FAULT, OUT_OF_MEMORY

if TYPE_CHECKING:
    from llava.answer_traces import Answers, Asked, Prompt
    from llava.forecast import Forecast, SampleForecast
    from vram.cards import Card

_TOLD = 5  # holders on the terminal; the file has ten
_ROWS = 12  # samples on the terminal; of more, those with a new highest peak
_MOST_SAMPLES = 2**20
_TIMES = 8  # tokens of the timeline on the terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program. 0 it fits, 1 out of memory, 2 bad input, 70 a fault of our own, 130 interrupted."""
    parser = Parser(
        prog="forecast-memory",
        description="How much GPU memory LLaVA's answers would need, without a GPU and without weights.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", default="7b", help="7b (default), 13b, tiny, or a folder with a config")
    add("--mode", choices=tuple(MODES), default="baseline")
    add("--card", default="24GiB", help="a GPU's name or a size (default 24GiB)")
    add("--answers", type=token_counts, default=(2, 2, 5, 24), help="tokens of each answer (default 2,2,5,24)")
    add("--prompt-tokens", type=whole(1), help="of each prompt, its image's included (default: 51 and the image's)")
    add("--question-file", type=Path, help="LLaVA-format JSON, whose prompts are taken one after the other")
    add("--image-folder", type=Path, help="where the images of the question file lie")
    add("--samples", type=whole(1), help="so many, prompts and answers over and over (default: each of the list once)")
    add("--batch", type=whole(1), default=1, help="prompts at once (default 1)")
    add("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    add("--attn", choices=("sdpa", "eager"), default="sdpa")
    add("--no-cache", action="store_true", help="compute the whole prompt anew at every token, as the original does")
    add(
        "--keep-attentions",
        action="store_true",
        help="keep attentions and logits, as the original did: eager, no cache",
    )
    add("--every-step", action="store_true", help="simulate every token of long answers too")
    add("--output-file", type=Path, help="write the figures as JSON")
    add("--snapshot", type=Path, help="write what happened for PyTorch's memory viewer (.pickle)")
    try:
        return _run(parser.parse_args(argv))
    except BadInput as error:
        return _fail(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except Exception:
        traceback.print_exc()
        return OUR_FAULT


def _run(options: argparse.Namespace) -> int:
    from llava.eval.results import check_output, write_json
    from vram.cards import find_card, smallest_that_fits
    from vram.simulated.allocator import refuse_environment
    from vram.units import format_bytes

    try:
        card = find_card(options.card)
    except ValueError as error:
        raise BadInput(f"--card: {error}") from None
    try:
        refuse_environment(os.environ)
    except ValueError as error:
        raise BadInput(str(error)) from None
    if options.samples is not None and options.samples > _MOST_SAMPLES:
        raise BadInput(f"--samples: must be at most {_MOST_SAMPLES:,}, got {shown(options.samples)}")
    if options.image_folder is not None and options.question_file is None:
        raise BadInput("--image-folder must come with --question-file, got it alone")
    if options.question_file is not None and options.prompt_tokens is not None:
        raise BadInput("prompts must come from --question-file or --prompt-tokens, got both")
    output, snapshot = (
        None if path is None else check_output(path, options.question_file, what)
        for path, what in ((options.output_file, "output file"), (options.snapshot, "snapshot"))
    )
    if snapshot is not None and snapshot == output:
        raise BadInput(f"the snapshot must not be the output file, got {shown(str(snapshot))} for both")
    if snapshot is not None and snapshot.suffix != ".pickle":
        raise BadInput(f"the snapshot must be called *.pickle, for the viewer, got {shown(snapshot.name)}")
    import torch

    from llava.answer_traces import MOST_TOKENS, Answers, Asked, Prompt
    from llava.forecast import (
        Forecast,
        NoRoom,
        check_prompt_tokens,
        config_of,
        least_prompt_tokens,
        token_bytes,
        weights_bytes,
    )

    asked = Asked(
        model=options.model,
        mode=options.mode,
        card=card,
        dtype=getattr(torch, options.dtype),
        attention="eager" if options.keep_attentions else options.attn,
        batch=options.batch,
        use_cache=not (options.no_cache or options.keep_attentions),
        keep_attentions=options.keep_attentions,
        every_step=options.every_step,
    )
    config = config_of(options.model)
    if options.question_file is not None:
        prompts = _prompts(options)
    else:
        prompts = [Prompt(options.prompt_tokens or least_prompt_tokens(config))]
        check_prompt_tokens(config, prompts[0].tokens)
    longest = max(prompt.tokens for prompt in prompts) + max(options.answers)
    if longest > (most := config.text_config.max_position_embeddings):
        raise BadInput(f"prompt and answer must be at most the context of {most} tokens, got {longest}")
    if options.batch * longest > MOST_TOKENS:
        raise BadInput(
            f"a batch must have at most {MOST_TOKENS:,} tokens with its answers, got "
            f"{shown(options.batch)} x {longest:,}"
        )
    say(_assumptions(asked, prompts))
    answers = Answers(asked, config)
    try:
        forecast = Forecast(answers)
    except NoRoom as error:
        needed = weights_bytes(answers)
        found = _Found(token_bytes(answers), None, smallest_that_fits(needed), out_of_memory=True)
        if output is not None:
            write_json(output, _json(answers, [], found))
        told = f"the card must hold the model's weights, {format_bytes(needed)}, got {card}: {_short(str(error))}"
        return _fail(f"{told} The smallest listed card that does: {found.smallest_card or 'none'}", OUT_OF_MEMORY)
    wanted = list(_pairs(prompts, options.answers))
    count = options.samples or len(wanted)
    samples = _answer(forecast, islice(cycle(wanted), count))
    found = _find(answers, samples, wanted, count)
    if output is not None:
        write_json(output, _json(answers, samples, found))
    if snapshot is not None:
        _save(snapshot, forecast)
    _tell(forecast, samples, wanted, found)
    return OUT_OF_MEMORY if found.out_of_memory else 0


def _prompts(options: argparse.Namespace) -> list[Prompt]:
    """Of every question: its tokens, by the model's own tokenizer."""
    from llava.answer_traces import Prompt
    from llava.forecast import config_of, tokenizer_of
    from llava.prompting import Prompts
    from llava.questions import load_questions

    prompts = Prompts(tokenizer_of(options.model), config_of(options.model))
    questions = load_questions(options.question_file, options.image_folder)
    return [Prompt(len(prompts.ids(question)), question.image is not None) for question in questions]


def _pairs(prompts: Sequence[Prompt], answers: Sequence[int]) -> Iterator[tuple[Prompt, int]]:
    """Each of the longer list once, and of the other over and over."""
    return islice(zip(cycle(prompts), cycle(answers), strict=False), max(len(prompts), len(answers)))


_ROW = "{:<8}{:<8}{:<8}{:<13}{:<13}{}"


def _answer(forecast: Forecast, wanted: Iterator[tuple[Prompt, int]]) -> list[SampleForecast]:
    say(_ROW.format("sample", "prompt", "tokens", "peak", "alive after", "reserved"))
    samples: list[SampleForecast] = []
    highest, silent = 0, 0
    for prompt, tokens in wanted:
        one = forecast.answer(prompt, tokens)
        samples.append(one)
        if len(samples) <= _ROWS or one.peak_bytes > highest or one.out_of_memory:
            say(_row(one))
        else:
            silent += 1
        highest = max(highest, one.peak_bytes)
        if one.out_of_memory:
            break
    if silent:
        say(f"and {silent} more, none with a higher peak")
    return samples


def _row(one: SampleForecast) -> str:
    from vram.units import format_bytes

    sizes = [format_bytes(size) for size in (one.peak_bytes, one.live_bytes, one.reserved_bytes)]
    row = _ROW.format(one.sample, one.prompt_tokens, one.answer_tokens, *sizes)
    return f"{row}  out of memory after {len(one.tokens)} tokens" if one.out_of_memory else row


def _assumptions(asked: Asked, prompts: Sequence[Prompt]) -> str:
    cache = "attentions kept, no cache" if asked.keep_attentions else "KV cache" if asked.use_cache else "no cache"
    lengths = sorted({prompt.tokens for prompt in prompts})
    told = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    return (
        f"{asked.model}, {asked.mode}, {str(asked.dtype).removeprefix('torch.')}, {asked.attention}, {cache}; "
        f"{asked.batch} x {told} prompt tokens; card {asked.card}\n"
        "simulated: default allocator settings, one stream, a CUDA context of "
        f"{asked.card.context_bytes // 2**20} MiB; not compared with a GPU yet"
    )


def _save(path: Path, forecast: Forecast) -> None:
    from vram.explanation.snapshot import dump_snapshot

    try:
        dump_snapshot(path, forecast.snapshot())
    except OSError as error:
        raise BadInput(f"the snapshot must be writable, got {shown(str(path))}: {error}") from error
    say(f"snapshot for pytorch.org/memory_viz: {path}")


@dataclass(frozen=True)
class _Found:
    """Of all samples. `most_tokens` in one answer to the prompt of the longest one; None where it is not known, as
    `smallest_card`, which is also None where no listed card does."""

    token_bytes: int | None
    most_tokens: int | None
    smallest_card: Card | None
    out_of_memory: bool
    card_known: bool = True
    interpolated: int = 0  # samples put together
    stepwise: int = 0  # long ones that could not be


def _find(
    answers: Answers, samples: Sequence[SampleForecast], wanted: Sequence[tuple[Prompt, int]], count: int
) -> _Found:
    from llava.forecast import most_tokens, smallest_card, token_bytes
    from vram.cards import CARDS, smallest_that_fits

    counts = answers.linear, answers.stepwise  # before more answers are played
    most, fitting, known = None, None, True
    prompt, longest = _of_longest(wanted)
    # Only where a long answer was simulated anyway: its ends take longer than all the rest of short ones.
    if answers.linear and answers.in_steps(longest):
        most = most_tokens(answers, prompt)
    if not samples[-1].out_of_memory:
        fitting = smallest_that_fits(max(one.reserved_bytes for one in samples))
    elif known := all(answers.to_the_end(*pair) for pair in wanted[:count]):
        larger = [card for card in CARDS if card.total_bytes > answers.asked.card.total_bytes]
        larger.sort(key=lambda card: card.total_bytes)
        fitting = smallest_card(answers, islice(cycle(wanted), count), larger)
    return _Found(token_bytes(answers), most, fitting, bool(samples[-1].out_of_memory), known, *counts)


def _of_longest(wanted: Sequence[tuple[Prompt, int]]) -> tuple[Prompt, int]:
    return max(wanted, key=lambda pair: (pair[1], pair[0].tokens))


def _tell(
    forecast: Forecast, samples: Sequence[SampleForecast], wanted: Sequence[tuple[Prompt, int]], found: _Found
) -> None:
    from vram.units import format_bytes

    largest = max(samples, key=lambda one: one.peak_bytes)
    say(f"at the peak, in sample {largest.sample}:")
    for holder in largest.holders[:_TOLD]:
        say(f"  {format_bytes(holder.n_bytes)} in {holder.count:,}: {holder.line}")
    if largest.tokens:
        say("alive at each of its tokens, and the most until then:")
    for token in _spread(len(largest.tokens)):
        sizes = [format_bytes(bytes_of[token]) for bytes_of in (largest.tokens, largest.token_peaks)]
        say(f"  token {token + 1:<6}{sizes[0]:<13}{sizes[1]}")
    if found.interpolated:
        say(f"long answers put together from their first and last steps, as sizes are linear: {found.interpolated}")
    if found.stepwise:
        say(f"long answers simulated at every step, as sizes are not linear: {found.stepwise}")
    if found.token_bytes is not None:
        say(f"a token adds {format_bytes(found.token_bytes)} of keys and values")
    if found.most_tokens is not None:
        say(_longest(forecast.answers, found.most_tokens, wanted))
    if found.out_of_memory:
        say(f"sample {samples[-1].sample}: {_short(samples[-1].out_of_memory)}")
    else:
        say(_to_come(forecast, samples, wanted))
    if found.card_known:
        say(f"the smallest listed card that fits: {found.smallest_card or 'none'}")


def _longest(answers: Answers, most: int, wanted: Sequence[tuple[Prompt, int]]) -> str:
    prompt, _ = _of_longest(wanted)
    if prompt.tokens + most == answers.context:
        return f"an answer may have all {most:,} tokens that the context of {answers.context:,} leaves"
    return f"an answer to {prompt.tokens:,} tokens may have {most:,} on this card; the next is out of memory"


def _short(message: str) -> str:
    """CUDA's message without its advice, which a simulation can't take."""
    return message.partition(" Including")[0]


def _to_come(forecast: Forecast, samples: Sequence[SampleForecast], wanted: Sequence[tuple[Prompt, int]]) -> str:
    """What the same samples do when they come again, and again."""
    from vram.units import format_bytes

    ends = [one.live_bytes for one in samples]
    # Twice again at most: what is done once is done then.
    for prompt, tokens in islice(cycle(wanted), len(samples), 3 * len(wanted)):
        one = forecast.answer(prompt, tokens)
        if one.out_of_memory:
            return f"the same again: out of memory in sample {one.sample}"
        ends.append(one.live_bytes)
    kept_bytes = ends[-1] - ends[-1 - len(wanted)]
    if kept_bytes <= 0:
        return "the same again: nothing more stays behind, however many samples"
    room_bytes = forecast.allocator.capacity_bytes - forecast.allocator.reserved_bytes
    more = room_bytes // kept_bytes * len(wanted)
    return f"the same again: {format_bytes(kept_bytes)} more each time; the card is full after {more:,} samples"


def _spread(count: int) -> list[int]:
    """At most `_TIMES` of the first `count` numbers, from the first to the last."""
    if count <= _TIMES:
        return list(range(count))
    return [round(index * (count - 1) / (_TIMES - 1)) for index in range(_TIMES)]


def _json(answers: Answers, samples: Sequence[SampleForecast], found: _Found) -> dict[str, Any]:
    asked = answers.asked
    return {
        "schema": 1,
        "simulated": True,
        "model": asked.model,
        "mode": asked.mode,
        "card": asdict(asked.card),
        "batch": asked.batch,
        "dtype": str(asked.dtype).removeprefix("torch."),
        "attention": asked.attention,
        "use_cache": asked.use_cache,
        "keep_attentions": asked.keep_attentions,
        "token_bytes": found.token_bytes,
        "most_tokens": found.most_tokens,
        "smallest_card": found.smallest_card.name if found.smallest_card else None,
        "out_of_memory": found.out_of_memory,
        "interpolated": found.interpolated,
        "stepwise": found.stepwise,
        "samples": [asdict(one) for one in samples],
    }


def _fail(message: str, code: int) -> int:
    print(f"forecast-memory: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
