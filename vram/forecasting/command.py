"""`vram forecast FILE.py:STEP`: whether a step fits a card, what it needs, and how large it may be."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vram.cards import Card, find_card
from vram.escaping import shown
from vram.exit_codes import FINE, INCONCLUSIVE, OUT_OF_MEMORY
from vram.forecasting.progress import Progress
from vram.forecasting.search import Largest, largest
from vram.forecasting.step_file import StepFile, parsed
from vram.forecasting.words import fits_text, full_text, holder_lines, kept_text, smallest_text, without_advice
from vram.replaying.collector import cheap_collections
from vram.units import format_bytes

if TYPE_CHECKING:
    from vram.forecasting.forecast import StepForecast, Traces

SUMMARY = "forecast a function's memory on a card that is not here"
FORECAST = """\
Import FILE.py on a simulated card, call its function STEP three times, and say whether it fits: peak and reserved
bytes, what the peak is made of, the smallest listed card that fits, what stays behind from call to call, and the
largest sizes that fit. Needs no GPU, and no memory of that size.

A size is a parameter of STEP with a whole number as its default, as in `def step(batch_size=8, tokens=512)`. A
parameter without a default gets each of the file's `samples`, a list. Models and tensors are made on "cuda".\
"""
EXITS = "Exit codes: 0 it fits; 1 out of memory; 2 bad input or usage; 3 the step raised, or is not simulated."
_HOLDERS = 8
_ASSUMED = "simulated: default allocator settings, one stream, a CUDA context of {} MiB; not compared with a GPU yet"


def add_forecast(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vram forecast`."""
    parser.add_argument("step", metavar="FILE.py:STEP", help="the function to forecast")
    parser.add_argument("--card", default="24GiB", help="a GPU's name or a size (default: 24GiB)")
    set_help = "call it with this size instead of its default; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=N", help=set_help)
    parser.add_argument(
        "--samples", type=int, metavar="N", help="only the first N of the file's samples (default: all)"
    )
    train_help = "a training step: it returns its loss, whose backward pass runs too where the step has not run it"
    parser.add_argument("--train", action="store_true", help=train_help)
    parser.add_argument("--no-search", action="store_true", help="do not search the largest sizes that fit")
    parser.add_argument("--json", action="store_true", help="print JSON")


def forecast(arguments: argparse.Namespace) -> tuple[int, str]:
    """Exit code and text of `vram forecast`; lines are printed as they come. Raises ValueError for bad input."""
    card = _card(arguments.card)
    file = parsed(arguments.step)
    settings = dict(map(_setting, arguments.set))
    if arguments.samples is not None and arguments.samples < 1:
        raise ValueError(f"--samples must be at least 1, got {arguments.samples}")
    from vram.forecasting.forecast import Refused, simulated  # not before the checks: it imports torch

    def simulate(on: Card, sizes: dict[str, int]) -> Traces:
        return simulated(file, on, settings | sizes, train=arguments.train, most_samples=arguments.samples)

    try:
        with cheap_collections():  # there is one after each call
            return _forecast(arguments, file, card, simulate)
    except Refused as error:
        print(shown(f"vram forecast: {error}"), file=sys.stderr)
        return INCONCLUSIVE, ""


def _forecast(
    arguments: argparse.Namespace, file: StepFile, card: Card, simulate: Callable[[Card, dict[str, int]], Traces]
) -> tuple[int, str]:
    from vram.forecasting import forecast as forecasts

    say = (lambda _: None) if arguments.json else _say
    progress = Progress("vram forecast")
    progress("simulating the calls")
    traces = simulate(card, {})
    one = forecasts.forecast(traces, card)
    progress()
    for line in _lines(one):
        say(line)
    progress("trying listed cards")
    smallest = forecasts.smallest_card(traces, lambda other: simulate(other, {}))
    progress()
    say(smallest_text(smallest))
    found = {}
    for name in () if arguments.no_search else one.sizes:

        def again(size: int, name: str = name) -> StepForecast | str:
            progress(f"trying {name} {size:,}")
            try:
                return forecasts.forecast(simulate(card, {name: size}), card)
            except forecasts.Refused as error:
                return str(error)

        found[name] = largest(one.sizes[name], one, again)
        progress()
        say(_largest_text(name, found[name]))
    for line in (*one.remarks, _ASSUMED.format(card.context_bytes // 2**20)):
        say(line)
    code = FINE if one.fits else OUT_OF_MEMORY
    return code, json.dumps(_as_json(file, one, smallest, found), indent=1) if arguments.json else ""


def _lines(one: StepForecast) -> list[str]:
    """Everything that is known of the step as it is."""
    where = f"in call {one.failed_call}" if one.failed_call else "before the first call"
    lines = [fits_text(one.card, one.spare_bytes) if one.fits else full_text(one.card, one.spare_bytes, where)]
    if not one.fits:
        lines.append(f"  {without_advice(one.out_of_memory)}")
    sizes = ", ".join(f"{name} {size:,}" for name, size in one.sizes.items())
    peak = f"peak {format_bytes(one.peak_bytes)}, reserved {format_bytes(one.reserved_bytes)}"
    lines.append(f"{peak}, with {sizes}" if sizes else peak)
    at = f"in call {one.peak_call}" if one.peak_call else "before the first call"
    weights = f", {format_bytes(one.weights_bytes)} of it weights" if one.weights_bytes else ""
    lines += [f"at the peak, {at}{weights}:", *holder_lines(one.holders, _HOLDERS)]
    return (
        [*lines, kept_text(one.kept_bytes, one.calls_until_full if one.fits else None, "calls")]
        if (one.fits or one.kept_bytes <= 0)
        else [*lines, f"the same again: {format_bytes(one.kept_bytes)} more each time"]
    )


def _largest_text(name: str, found: Largest) -> str:
    if found.fits is None:
        return f"no {name} fits" + (f" ({found.reason})" if found.reason else ", not even 1")
    if found.fails is None:
        return f"{name} {found.fits:,} fits; more was not forecast ({found.reason})"
    return f"{name} {found.fits:,} is the largest that fits"


def _as_json(file: StepFile, one: StepForecast, smallest: Card | None, found: dict[str, Largest]) -> dict[str, Any]:
    data = asdict(one)
    return {
        "schema": 1,
        "simulated": True,
        "step": str(file),
        "fits": one.fits,
        "spare_bytes": one.spare_bytes,
        **{name: data[name] for name in data if name not in ("holders", "remarks")},
        "calls_until_full": one.calls_until_full,
        "made_of": [{"bytes": each.n_bytes, "count": each.count, "line": each.line} for each in one.holders],
        "smallest_card": smallest.name if smallest else None,
        "largest": {name: asdict(each) for name, each in found.items()},
        "remarks": list(one.remarks),
    }


def _card(name: str) -> Card:
    try:
        return find_card(name)
    except ValueError as error:
        raise ValueError(f"--card: {error}") from None


def _setting(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if not name.isidentifier() or not value.isdecimal() or int(value) < 1:
        raise ValueError(f"--set must be NAME=N with a whole number above 0, got {text!r}")
    return name, int(value)


def _say(line: str) -> None:
    print(shown(line), flush=True)
