"""How much GPU memory answers would need, and which cards they fit; needs no GPU and no weights."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava.errors import BadInput
from llava.eval.common import BAD_INPUT, INTERRUPTED, OUR_FAULT, OUT_OF_MEMORY, Parser, whole

if TYPE_CHECKING:
    from llava.forecast import Asked, SampleForecast

_MODES = ("baseline", "himap", "custom-fps", "custom-tome")
_TOLD = 5  # holders on the terminal; the file has ten


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
    add("--batch", type=whole(1), default=1, help="prompts at once (default 1)")
    add("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    add("--attn", choices=("sdpa", "eager"), default="sdpa")
    add("--no-cache", action="store_true", help="compute the whole prompt anew at every token, as the original does")
    add(
        "--keep-attentions",
        action="store_true",
        help="keep attentions and logits, as the original did: eager, no cache",
    )
    add("--output-file", type=Path, help="write the figures as JSON")
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
    from llava.eval.results import check_output
    from vram.simulated.cards import find_card

    try:
        card = find_card(options.card)
    except ValueError as error:
        raise BadInput(f"--card: {error}") from None
    output = None if options.output_file is None else check_output(options.output_file, None)
    import torch

    from llava.forecast import Asked, forecast, least_prompt_tokens

    asked = Asked(
        model=options.model,
        mode=options.mode,
        card=card,
        prompt_tokens=options.prompt_tokens or least_prompt_tokens(options.model),
        dtype=getattr(torch, options.dtype),
        attention=options.attn,
        batch=options.batch,
        use_cache=not options.no_cache,
        keep_attentions=options.keep_attentions,
    )
    print(_assumptions(asked))
    print(_ROW.format("sample", "tokens", "peak", "alive after", "reserved"))
    samples = []
    for one in forecast(asked, options.answers):
        samples.append(one)
        print(_row(one), flush=True)
    _tell(asked, samples)
    if output is not None:
        from llava.eval.results import write_json

        write_json(output, _json(asked, samples))
    return OUT_OF_MEMORY if samples[-1].out_of_memory else 0


_ROW = "{:<8}{:<8}{:<13}{:<13}{}"


def _row(one: SampleForecast) -> str:
    from vram.units import format_bytes

    sizes = [format_bytes(size) for size in (one.peak_bytes, one.live_bytes, one.reserved_bytes)]
    row = _ROW.format(one.sample, one.answer_tokens, *sizes)
    return f"{row}  out of memory after {len(one.tokens)} tokens" if one.out_of_memory else row


def _assumptions(asked: Asked) -> str:
    cache = "attentions kept, no cache" if asked.keep_attentions else "KV cache" if asked.use_cache else "no cache"
    attention = "eager" if asked.keep_attentions else asked.attention
    return (
        f"{asked.model}, {asked.mode}, {str(asked.dtype).removeprefix('torch.')}, {attention}, {cache}; "
        f"{asked.batch} x {asked.prompt_tokens} prompt tokens; card {asked.card}\n"
        "simulated: default allocator settings, one stream, a CUDA context of "
        f"{asked.card.context_bytes // 2**20} MiB; not compared with a GPU yet"
    )


def _tell(asked: Asked, samples: Sequence[SampleForecast]) -> None:
    from vram.simulated.cards import smallest_that_fits
    from vram.units import format_bytes

    largest = max(samples, key=lambda one: one.peak_bytes)
    print(f"at the peak, in sample {largest.sample}:")
    for holder in largest.holders[:_TOLD]:
        print(f"  {format_bytes(holder.n_bytes)} in {holder.count:,}: {holder.line}")
    if samples[-1].out_of_memory:
        print(f"sample {samples[-1].sample}: {samples[-1].out_of_memory.partition(' Including')[0]}")
        return
    steps = [after - before for one in samples for before, after in zip(one.tokens, one.tokens[1:], strict=False)]
    room_bytes = asked.card.total_bytes - asked.card.context_bytes - max(one.reserved_bytes for one in samples)
    if steps and max(steps[1:] or steps) > 0:
        a_token = max(steps[1:] or steps)
        print(
            f"a token adds {format_bytes(a_token)}: the card is full after {room_bytes // a_token:,} more in one answer"
        )
    fits = smallest_that_fits(max(one.reserved_bytes for one in samples))
    print(f"the smallest listed card that fits: {fits or 'none'}")


def _json(asked: Asked, samples: Sequence[SampleForecast]) -> dict[str, Any]:
    return {
        "schema": 1,
        "simulated": True,
        "model": asked.model,
        "mode": asked.mode,
        "card": asdict(asked.card),
        "prompt_tokens": asked.prompt_tokens,
        "batch": asked.batch,
        "dtype": str(asked.dtype).removeprefix("torch."),
        "attention": "eager" if asked.keep_attentions else asked.attention,
        "use_cache": asked.use_cache and not asked.keep_attentions,
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
