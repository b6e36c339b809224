"""A step forecast for a card: its file imported and called on a card without a limit, the traces played on the card."""

from __future__ import annotations

import contextlib
import gc
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from vram.cards import Card
from vram.explanation.allocations import Describing
from vram.forecasting.playing import (
    ENDLESS_BYTES,
    CardPlayer,
    Holder,
    NoRoom,
    first_that_fits,
    spare_bytes,
    until_full,
)
from vram.forecasting.step_file import BadStep, Step, StepFile, imported, step_of
from vram.frames import Frame, telling_frame
from vram.replaying.pending import refuse_pending
from vram.simulated.context import DEVICE, SimulatedCuda
from vram.simulated.remarks import Remarks
from vram.simulated.trace import Recorder, Trace
from vram.torch_hooks.storages import living_tensors

_TWICE = "backward through the graph a second time"  # torch's words
_LAPS = 3  # the first warms up, the next two say what stays behind


class Refused(Exception):
    """The simulation, or the step itself, raised: what, where, and the way out, in one line."""


@dataclass(frozen=True)
class Traces:
    """Requests of a step to the allocator: at import, and in each call and what follows until the next.

    `weights_bytes` are parameters that were on the card after the import. `remarks` go with the figures.
    """

    setup: Trace
    calls: tuple[tuple[Trace, Trace], ...]
    samples: int
    sizes: Mapping[str, int]
    weights_bytes: int
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class StepForecast:
    """A step on a card. Bytes are the allocator's: `peak` in blocks, `reserved` in segments, the most of all calls.

    They are what the step needs: those of a card without a limit, also where `card` is full in call number
    `failed_call` (0: at import), with CUDA's message in `out_of_memory`. `peak_call` has the highest peak.
    `kept_bytes` stay behind each time the samples have been gone through. `holders` are what the peak is made of.
    """

    card: Card
    sizes: Mapping[str, int]
    samples: int
    peak_bytes: int
    reserved_bytes: int
    peak_call: int
    weights_bytes: int
    kept_bytes: int
    holders: tuple[Holder, ...]
    remarks: tuple[str, ...]
    out_of_memory: str = ""
    failed_call: int = 0

    @property
    def fits(self) -> bool:
        """Whether the card has room for every call."""
        return not self.out_of_memory

    @property
    def spare_bytes(self) -> int:
        """Bytes that are left on the card; less than 0 where they are missing."""
        return spare_bytes(self.card, self.reserved_bytes)

    @property
    def calls_until_full(self) -> int | None:
        """Calls, beside those that were forecast, until the card is full; None where nothing stays behind."""
        laps = until_full(self.card, self.reserved_bytes, self.kept_bytes)
        return None if laps is None else laps * self.samples


def simulated(
    file: StepFile,
    card: Card,
    settings: Mapping[str, int],
    *,
    train: bool = False,
    most_samples: int | None = None,
) -> Traces:
    """Import the file and call its step, three times for each sample, on a card without a limit.

    Raises BadStep for a file or function that can't be used, Refused for whatever else it raises.
    """
    failure: Exception
    gc.collect()  # what the forecast before made
    cuda = SimulatedCuda(replace(card, total_bytes=ENDLESS_BYTES))
    with cuda, cuda.remarking() as remarks, contextlib.redirect_stdout(sys.stderr):
        try:
            return _recorded(cuda, remarks, file, settings, train, most_samples)
        except (BadStep, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever a stranger's code raises, SystemExit too
            failure = Refused(_in_a_line(error))
    raise failure  # out here it does not carry the frames, which hold tensors


def forecast(traces: Traces, card: Card) -> StepForecast:
    """The traces on the card."""
    endless = CardPlayer(replace(card, total_bytes=ENDLESS_BYTES), traces.setup)
    built = endless.built
    peak_bytes, reserved_bytes, peak_call = built.allocated_peak_bytes, built.reserved_peak_bytes, 0
    holders = endless.alive()
    alive = []
    for number, call in enumerate(traces.calls, start=1):
        plays, lines = endless.play(call)
        reserved_bytes = max(reserved_bytes, *(played.reserved_peak_bytes for played in plays))
        highest = max(played.allocated_peak_bytes for played in plays)
        if highest > peak_bytes:
            peak_bytes, peak_call, holders = highest, number, lines
        alive.append(plays[-1].allocated_bytes)
    failed_call, message = _first_failure(traces, card)
    return StepForecast(
        card=card,
        sizes=traces.sizes,
        samples=traces.samples,
        peak_bytes=peak_bytes,
        reserved_bytes=reserved_bytes,
        peak_call=peak_call,
        weights_bytes=traces.weights_bytes,
        kept_bytes=alive[-1] - alive[-1 - traces.samples],
        holders=holders,
        remarks=traces.remarks,
        out_of_memory=message,
        failed_call=failed_call,
    )


def smallest_card(traces: Traces, again: Callable[[Card], Traces]) -> Card | None:
    """The smallest listed card with room for the step, simulated `again` with that card's own kernels."""

    def fits(card: Card) -> bool:
        if _first_failure(traces, card)[1]:
            return False
        try:
            return not _first_failure(again(card), card)[1]
        except Refused:  # on that card
            return False

    return first_that_fits(fits)


def _first_failure(traces: Traces, card: Card) -> tuple[int, str]:
    """The number of the call in which the card is full, and CUDA's message; 0 and "" where it is not."""
    try:
        player = CardPlayer(card, traces.setup, named=False)
    except NoRoom as error:
        return 0, str(error)
    for number, call in enumerate(traces.calls, start=1):
        plays, _ = player.play(call)
        if plays[-1].oom is not None:
            return number, str(plays[-1].oom)
    return 0, ""


def _recorded(
    cuda: SimulatedCuda,
    remarks: Remarks,
    file: StepFile,
    settings: Mapping[str, int],
    train: bool,
    most_samples: int | None,
) -> Traces:
    recorder, rules = Recorder(cuda.allocator), (cuda.allocator.settings, cuda.allocator.allowed_bytes)
    with imported(file) as module:
        step = step_of(module, file, settings, most_samples)
        setup, weights_bytes = recorder.cut("setup"), _weights_bytes()
        cuda.describe = Describing()
        calls = []
        for sample in step.samples * _LAPS:
            _call(step, sample, train)
            during = recorder.cut()
            gc.collect()
            calls.append((during, recorder.cut()))
        if not any(op > 0 for during, _ in calls for op in during.ops):
            raise BadStep(f'{file} must work on the card, got no allocation there: make models and tensors on "cuda"')
        if rules != (cuda.allocator.settings, cuda.allocator.allowed_bytes):
            raise BadStep(f"{file} must not change the allocator's settings by a call: set PYTORCH_ALLOC_CONF")
        lines = remarks.lines(cuda.allocator.stats.requested_bytes.peak)
    return Traces(setup, tuple(calls), len(step.samples), step.sizes, weights_bytes, lines)


def _call(step: Step, sample: tuple[Any, ...], train: bool) -> None:
    """One call. Of a training step that returns its loss, the backward pass too."""
    result = step.call(*sample, **step.sizes)
    refuse_pending(step.call, result)
    if not train:
        return
    if not isinstance(result, torch.Tensor) or result.numel() != 1:
        raise BadStep(f"a training step must return its loss, a tensor of one element, got {type(result).__name__}")
    if result.grad_fn is not None:
        try:
            result.backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if _TWICE not in str(error):  # the step has run it itself
                raise


def _weights_bytes() -> int:
    """Bytes of the parameters on the card."""
    parameters = [each for each in living_tensors() if isinstance(each, torch.nn.Parameter) and each.device == DEVICE]
    storages = {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in parameters}
    return sum(storages.values())


def _in_a_line(error: BaseException) -> str:
    """ "NotImplementedError at step.py:12 step: simulated CUDA does not model ...: measure on a GPU"."""
    frames = [Frame(each.filename, each.lineno or 0, each.name) for each in traceback.extract_tb(error.__traceback__)]
    frame = telling_frame(frames[::-1])
    if isinstance(error, SyntaxError):
        frame = Frame(error.filename or "?", error.lineno or 0, "")
    message = " ".join(str(error).split())
    where = "" if frame is None or str(frame) in message else f" at {str(frame).strip()}"
    return f"{type(error).__name__}{where}: {message}"
