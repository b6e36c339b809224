"""A forecast in words and as JSON."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeAlias

from llava.answer_traces import AnswerTraces, Prompt, Workload
from llava.errors import BadInput, shown
from llava.eval.terminal import say
from llava.forecast import Forecast, SampleForecast
from llava.modes import mode_flags
from vram.cards import Card
from vram.explanation.snapshot import dump_snapshot
from vram.forecasting.playing import NoRoom, spare_bytes, until_full
from vram.forecasting.progress import Progress
from vram.forecasting.words import fits_text, full_text, holder_lines, kept_text, smallest_text, without_advice
from vram.units import format_bytes

Pair: TypeAlias = tuple[Prompt, int]  # and the tokens of its answer

_HOLDERS = 5  # on the terminal; the file has ten
_ROWS = 12  # samples on the terminal; of more, those with a new highest peak
_TIMES = 8  # tokens of the timeline on the terminal
_ROW = "{:<8}{:<8}{:<8}{:<13}{:<13}{}"


@dataclass(frozen=True)
class Conclusions:
    """Conclusions from all samples.

    `max_tokens` is the limit of one answer to the longest answer's prompt, None where it is not known. `smallest_card`
    is None where no listed card is large enough, or, unless `card_known`, where it is not known. `interpolated` samples
    were interpolated; `stepwise` counts long ones that could not be. `spare_bytes` are left on the card beside the most
    that is reserved; None where it does not fit.
    """

    token_bytes: int | None
    max_tokens: int | None
    smallest_card: Card | None
    out_of_memory: bool
    spare_bytes: int | None = None
    card_known: bool = True
    interpolated: int = 0
    stepwise: int = 0


class Rows:
    """The table of samples, printed as they come; with many, those that say nothing new are counted."""

    def __enter__(self) -> Rows:
        say(_ROW.format("sample", "prompt", "tokens", "peak", "alive after", "reserved"))
        self._count = self._highest = self._silent = 0
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if self._silent and kind is None:
            say(f"and {self._silent} more, none with a higher peak")

    def add(self, sample: SampleForecast) -> None:
        """Print the sample's row, or count it."""
        self._count += 1
        if self._count <= _ROWS or sample.peak_bytes > self._highest or sample.out_of_memory:
            say(_row(sample))
        else:
            self._silent += 1
        self._highest = max(self._highest, sample.peak_bytes)


def _row(sample: SampleForecast) -> str:
    sizes = [format_bytes(size) for size in (sample.peak_bytes, sample.live_bytes, sample.reserved_bytes)]
    row = _ROW.format(sample.sample, sample.prompt_tokens, sample.answer_tokens, *sizes)
    return f"{row}  out of memory after {len(sample.tokens)} tokens" if sample.out_of_memory else row


def assumptions(workloads: Sequence[Workload], prompts: Sequence[Prompt]) -> str:
    """The first lines: what is forecast, and what the simulation assumes. Workloads differ in their modes alone."""
    workload = workloads[0]
    cache = "KV cache" if workload.use_cache else "no cache"
    if workload.keep_attentions:
        cache = "attentions kept, no cache"
    lengths = sorted({prompt.tokens for prompt in prompts})
    tokens = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
    modes = ", ".join(map(_mode, workloads))
    return (
        f"{workload.model}, {modes}, {_dtype_name(workload)}, {workload.attention}, {cache}; "
        f"{workload.batch} x {tokens} prompt tokens; card {workload.card}\n"
        "simulated: default allocator settings, one stream, a CUDA context of "
        f"{workload.card.context_bytes // 2**20} MiB; not compared with a GPU yet"
    )


def spare_of(card: Card, samples: Sequence[SampleForecast]) -> int | None:
    """Bytes that all samples leave of the card; None where it is full."""
    reserved_bytes = max(sample.reserved_bytes for sample in samples)
    return None if samples[-1].out_of_memory else spare_bytes(card, reserved_bytes)


def mode_done(mode: str, samples: Sequence[SampleForecast]) -> str:
    """A line for a mode of several: its highest peak, or the sample that the card has no room for."""
    largest, last = max(samples, key=lambda each: each.peak_bytes), samples[-1]
    if last.out_of_memory:
        return f"{mode}: out of memory in sample {last.sample}"
    return f"{mode}: peak {format_bytes(largest.peak_bytes)}, in sample {largest.sample} of {len(samples)}"


def modes_fit(card: Card, modes: Mapping[str, Sequence[SampleForecast]]) -> str:
    """Whether the card has room in every mode, and what is left in the one that needs most."""
    spare = {mode: spare_of(card, samples) for mode, samples in modes.items()}
    if full := [mode for mode, n_bytes in spare.items() if n_bytes is None]:
        return full_text(card, 0, f"in {', '.join(full)}")
    return fits_text(card, min(n_bytes for n_bytes in spare.values() if n_bytes is not None))


def no_room(needed_bytes: int, card: Card, error: NoRoom, conclusions: Conclusions) -> None:
    """Print, as an error, that the card does not hold the weights, and which holds them and the samples."""
    samples = "with all samples" if conclusions.card_known else "without the samples"
    smallest = f"The smallest listed card that does: {conclusions.smallest_card or 'none'}, {samples}"
    message = (
        f"the card must hold the model's weights, {format_bytes(needed_bytes)}, got {card}: "
        f"{without_advice(str(error))} {smallest}"
    )
    print(f"forecast-memory: error: {' '.join(message.split())}", file=sys.stderr)


def save_snapshot(path: Path, forecast: Forecast) -> None:
    """Write the snapshot for PyTorch's memory viewer. Raises BadInput where it can't be written."""
    try:
        dump_snapshot(path, forecast.player.snapshot())
    except OSError as error:
        raise BadInput(f"the snapshot must be writable, got {shown(str(path))}: {error}") from error
    say(f"snapshot for pytorch.org/memory_viz: {path}")


def print_samples(card: Card, samples: Sequence[SampleForecast]) -> None:
    """Print what is known once the samples are: whether the card has room, and what the highest peak is made of."""
    spare = spare_of(card, samples)
    say(full_text(card, 0, f"in sample {samples[-1].sample}") if spare is None else fits_text(card, spare))
    _print_peak(max(samples, key=lambda each: each.peak_bytes))


def print_conclusions(
    forecast: Forecast,
    samples: Sequence[SampleForecast],
    pairs: Sequence[Pair],
    conclusions: Conclusions,
    progress: Progress,
) -> None:
    """Print everything else below the table."""
    if conclusions.interpolated:
        count = conclusions.interpolated
        say(f"long answers put together from their first and last steps, as sizes are linear: {count}")
    if conclusions.stepwise:
        say(f"long answers simulated at every step, as sizes are not linear: {conclusions.stepwise}")
    if conclusions.token_bytes is not None:
        say(f"a token adds {format_bytes(conclusions.token_bytes)} of keys and values")
    if conclusions.max_tokens is not None:
        say(_longest_answer(forecast.answers, conclusions.max_tokens, pairs))
    if conclusions.out_of_memory:
        say(f"sample {samples[-1].sample}: {without_advice(samples[-1].out_of_memory)}")
    else:
        progress("the same again")
        again = _repeated(forecast, samples, pairs)
        progress()
        say(again)
    if conclusions.card_known:
        say(smallest_text(conclusions.smallest_card))
    for line in forecast.answers.remarks:
        say(line)


def _print_peak(largest: SampleForecast) -> None:
    """Print the holders at the highest peak, and the timeline of its sample."""
    say(f"at the peak, in sample {largest.sample}:")
    for line in holder_lines(largest.holders, _HOLDERS):
        say(line)
    if largest.tokens:
        say("alive at each of its tokens, and the most until then:")
    for token in _spread(len(largest.tokens)):
        sizes = [format_bytes(n_bytes[token]) for n_bytes in (largest.tokens, largest.token_peaks)]
        say(f"  token {token + 1:<6}{sizes[0]:<13}{sizes[1]}")


def longest_pair(pairs: Sequence[Pair]) -> Pair:
    """The longest answer, and the longer prompt of equal ones."""
    return max(pairs, key=lambda pair: (pair[1], pair[0].tokens))


def _longest_answer(answers: AnswerTraces, max_tokens: int, pairs: Sequence[Pair]) -> str:
    prompt, _ = longest_pair(pairs)
    if prompt.tokens + max_tokens == answers.context:
        return f"an answer may have all {max_tokens:,} tokens that the context of {answers.context:,} leaves"
    return f"an answer to {prompt.tokens:,} tokens may have {max_tokens:,} on this card; the next is out of memory"


def _repeated(forecast: Forecast, samples: Sequence[SampleForecast], pairs: Sequence[Pair]) -> str:
    """Forecast the same samples again, and say what that adds."""
    ends = [each.live_bytes for each in samples]
    forecast.player.go_on_unnamed()
    # Twice again at most: what is done once is done then.
    for prompt, tokens in islice(cycle(pairs), len(samples), 3 * len(pairs)):
        sample = forecast.answer(prompt, tokens)
        if sample.out_of_memory:
            return f"the same again: out of memory in sample {sample.sample}"
        ends.append(sample.live_bytes)
    kept_bytes = ends[-1] - ends[-1 - len(pairs)]
    player = forecast.player
    more = until_full(player.card, player.allocator.reserved_bytes, kept_bytes)
    return kept_text(kept_bytes, None if more is None else more * len(pairs), "samples")


def _spread(count: int) -> list[int]:
    """At most `_TIMES` of the first `count` numbers, from the first to the last."""
    if count <= _TIMES:
        return list(range(count))
    return [round(index * (count - 1) / (_TIMES - 1)) for index in range(_TIMES)]


def as_json(answers: AnswerTraces, samples: Sequence[SampleForecast], conclusions: Conclusions) -> dict[str, Any]:
    """The output file: the workload, the conclusions, and each sample's figures."""
    workload, config = answers.workload, answers.config
    return {
        "schema": 1,
        "simulated": True,
        "model": workload.model,
        "mode": workload.mode,
        "mode_flags": mode_flags(config, workload.mode, **workload.flags),
        "card": asdict(workload.card),
        "batch": workload.batch,
        "dtype": _dtype_name(workload),
        "attention": workload.attention,
        "use_cache": workload.use_cache,
        "keep_attentions": workload.keep_attentions,
        "token_bytes": conclusions.token_bytes,
        "most_tokens": conclusions.max_tokens,
        "smallest_card": conclusions.smallest_card.name if conclusions.smallest_card else None,
        "out_of_memory": conclusions.out_of_memory,
        "spare_bytes": conclusions.spare_bytes,
        "remarks": answers.remarks,
        "interpolated": conclusions.interpolated,
        "stepwise": conclusions.stepwise,
        "samples": [asdict(each) for each in samples],
    }


def _mode(workload: Workload) -> str:
    """The mode, with the flags that are not its defaults."""
    flags = ", ".join(f"{name} {value}" for name, value in workload.flags.items())
    return f"{workload.mode} ({flags})" if flags else workload.mode


def _dtype_name(workload: Workload) -> str:
    return str(workload.dtype).removeprefix("torch.")
