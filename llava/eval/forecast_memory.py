"""How much GPU memory answers would need, and which cards they fit; needs no GPU and no weights."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.errors import BadInput
from llava.eval.common import BAD_INPUT, INTERRUPTED, OUR_FAULT, OUT_OF_MEMORY, Parser, whole

if TYPE_CHECKING:
    from llava.forecast import Forecast, SampleForecast
    from llava.simulated import Asked, Prompt

_MODES = ("baseline", "himap", "custom-fps", "custom-tome")
_TOLD = 5  # holders on the terminal; the file has ten
_ROWS = 12  # samples on the terminal; of more, those with a new highest peak
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
    add("--mode", choices=_MODES, default="baseline")
    add("--card", default="24GiB", help="a GPU's name or a size (default 24GiB)")
    add("--answers", type=_lengths, default=(2, 2, 5, 24), help="tokens of each answer (default 2,2,5,24)")
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
    from vram.simulated.cards import find_card

    try:
        card = find_card(options.card)
    except ValueError as error:
        raise BadInput(f"--card: {error}") from None
    if options.question_file is not None and options.prompt_tokens is not None:
        raise BadInput("prompts must come from --question-file or --prompt-tokens, got both")
    output, snapshot = (
        None if path is None else check_output(path, options.question_file)
        for path in (options.output_file, options.snapshot)
    )
    if snapshot is not None and snapshot.suffix != ".pickle":
        raise BadInput(f"the snapshot must be called *.pickle, for the viewer, got {snapshot.name}")
    import torch

    from llava.forecast import Forecast, check_prompt_tokens, config_of, least_prompt_tokens
    from llava.simulated import Answers, Asked, Prompt

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
    print(_assumptions(asked, prompts))
    forecast = Forecast(Answers(asked, config))
    wanted = list(_pairs(prompts, options.answers))
    samples = _answer(forecast, islice(cycle(wanted), options.samples or len(wanted)))
    if output is not None:
        write_json(output, _json(asked, samples))
    if snapshot is not None:
        _save(snapshot, forecast)
    _tell(forecast, samples, wanted)
    return OUT_OF_MEMORY if samples[-1].out_of_memory else 0


def _prompts(options: argparse.Namespace) -> list[Prompt]:
    """Of every question: its tokens, by the model's own tokenizer."""
    from llava.forecast import config_of, tokenizer_of
    from llava.prompting import Prompts
    from llava.questions import load_questions
    from llava.simulated import Prompt

    prompts = Prompts(tokenizer_of(options.model), config_of(options.model))
    questions = load_questions(options.question_file, options.image_folder)
    return [Prompt(len(prompts.ids(question)), question.image is not None) for question in questions]


def _pairs(prompts: Sequence[Prompt], answers: Sequence[int]) -> Iterator[tuple[Prompt, int]]:
    """Each of the longer list once, and of the other over and over."""
    return islice(zip(cycle(prompts), cycle(answers), strict=False), max(len(prompts), len(answers)))


_ROW = "{:<8}{:<8}{:<8}{:<13}{:<13}{}"


def _answer(forecast: Forecast, wanted: Iterator[tuple[Prompt, int]]) -> list[SampleForecast]:
    print(_ROW.format("sample", "prompt", "tokens", "peak", "alive after", "reserved"))
    samples: list[SampleForecast] = []
    highest, silent = 0, 0
    for prompt, tokens in wanted:
        one = forecast.answer(prompt, tokens)
        samples.append(one)
        if len(samples) <= _ROWS or one.peak_bytes > highest or one.out_of_memory:
            print(_row(one), flush=True)
        else:
            silent += 1
        highest = max(highest, one.peak_bytes)
        if one.out_of_memory:
            break
    if silent:
        print(f"and {silent} more, none with a higher peak")
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
    from vram.snapshot import dump_snapshot

    try:
        dump_snapshot(path, forecast.snapshot())
    except OSError as error:
        raise BadInput(f"the snapshot must be writable, got {path}: {error}") from error
    print(f"snapshot for pytorch.org/memory_viz: {path}")


def _tell(forecast: Forecast, samples: Sequence[SampleForecast], wanted: Sequence[tuple[Prompt, int]]) -> None:
    from vram.simulated.cards import smallest_that_fits
    from vram.units import format_bytes

    largest = max(samples, key=lambda one: one.peak_bytes)
    print(f"at the peak, in sample {largest.sample}:")
    for holder in largest.holders[:_TOLD]:
        print(f"  {format_bytes(holder.n_bytes)} in {holder.count:,}: {holder.line}")
    print("alive at each of its tokens, and the most until then:")
    for token in _spread(len(largest.tokens)):
        sizes = [format_bytes(bytes_of[token]) for bytes_of in (largest.tokens, largest.token_peaks)]
        print(f"  token {token + 1:<6}{sizes[0]:<13}{sizes[1]}")
    answers = forecast.answers
    if answers.linear:
        print(f"long answers put together from their first and last steps, as sizes are linear: {answers.linear}")
    if answers.stepwise:
        print(f"long answers simulated at every step, as sizes are not linear: {answers.stepwise}")
    if samples[-1].out_of_memory:
        print(f"sample {samples[-1].sample}: {samples[-1].out_of_memory.partition(' Including')[0]}")
        return
    card = answers.asked.card
    reserved_bytes = max(one.reserved_bytes for one in samples)
    tokens = max((one.tokens for one in samples), key=len)
    if len(tokens) > 2 and (a_token := (tokens[-1] - tokens[1]) // (len(tokens) - 2)) > 0:
        more = (card.total_bytes - card.context_bytes - reserved_bytes) // a_token
        print(f"a token adds {format_bytes(a_token)}: the card is full after {more:,} more in one answer")
    print(_to_come(forecast, samples, wanted))
    print(f"the smallest listed card that fits: {smallest_that_fits(reserved_bytes) or 'none'}")


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


def _json(asked: Asked, samples: Sequence[SampleForecast]) -> dict[str, Any]:
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
        "samples": [asdict(one) for one in samples],
    }


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(whole(1)(part) for part in text.split(","))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"answers must be numbers of tokens, as in 2,2,5,24: {error}") from None


def _fail(message: str, code: int) -> int:
    print(f"forecast-memory: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
