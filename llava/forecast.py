"""Memory that answering needs on a GPU, forecast without one: the real model code on a simulated card."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Any, NamedTuple

from llava.answer_traces import ENDLESS_BYTES, AnswerTraces, Prompt
from llava.modes import MODES
from vram.cards import Card
from vram.explanation.allocations import BEFORE, Allocation, Event
from vram.explanation.snapshot import viewer_snapshot
from vram.simulated.allocator import Block, CachingAllocator
from vram.simulated.allocator_settings import environment_settings
from vram.simulated.trace import Played, Replay, Trace

_MAX_HOLDERS = 10
_MAX_OPERATIONS = 2**24  # of a longest answer that is replayed: some ten seconds
_MAX_EVENTS = 100_000  # in the snapshot; the oldest are dropped, as PyTorch's own ring buffer does


@dataclass(frozen=True)
class Holder:
    """Allocations of one line of code at a sample's peak: bytes in blocks, and how many blocks."""

    n_bytes: int
    count: int
    line: str


@dataclass(frozen=True)
class SampleForecast:
    """One answer. Bytes are the allocator's: `peak` and `live` in blocks, `reserved` in segments.

    `tokens` has the live bytes at each token, `token_peaks` the peak since the token before. `out_of_memory` is CUDA's
    message where the card had no room; figures are then those until it failed.
    """

    sample: int
    prompt_tokens: int
    answer_tokens: int
    peak_bytes: int
    live_bytes: int
    reserved_bytes: int
    tokens: tuple[int, ...]
    token_peaks: tuple[int, ...]
    holders: tuple[Holder, ...]
    out_of_memory: str = ""


class NoRoom(Exception):
    """The card does not hold the model's weights: CUDA's message."""


class _Change(NamedTuple):
    """One malloc or free: the block's number, its bytes, and its allocation (None: before the model was traced)."""

    is_malloc: bool
    block: int
    n_bytes: int
    tag: Any


@dataclass
class Forecast:
    """Answers on one card, one after the other. Raises NoRoom for a card that does not hold the model's weights."""

    answers: AnswerTraces
    card: Card | None = None  # default: the one the traces were made for
    _live: dict[Block, int] = field(default_factory=dict)  # number of each live block
    _numbers: Iterator[int] = field(default_factory=count)
    _events: deque[_Change] = field(default_factory=lambda: deque(maxlen=_MAX_EVENTS))  # requested bytes
    _log: list[_Change] = field(default_factory=list)  # of one replayed trace, bytes in blocks

    def __post_init__(self) -> None:
        card = self.card or self.answers.workload.card
        settings = environment_settings(os.environ)
        self.allocator = CachingAllocator(card.total_bytes, card.context_bytes, settings=settings)
        self.allocator.observer = self._note
        self._replay = Replay(self.allocator)
        self._samples = 0
        self._previous: list[Played] = []
        built = self._replay.play(self.answers.setup)
        if built.oom is not None:
            raise NoRoom(str(built.oom))

    def answer(self, prompt: Prompt, tokens: int) -> SampleForecast:
        """Forecast one more answer, of `tokens` tokens. None may follow one that ran out of memory."""
        plays, holders = self._play(self.answers.of(prompt, tokens))
        if len(plays) <= tokens and plays[-1].oom is None:
            raise RuntimeError(f"traces must lead to the answer's end or to where there is no room, got {len(plays)}")
        self._free_previous(plays)
        reached = plays[:-1]  # the last led to the end, or to where there was no room
        self._samples += 1
        return SampleForecast(
            sample=self._samples - 1,
            prompt_tokens=prompt.tokens,
            answer_tokens=tokens,
            peak_bytes=max(played.allocated_peak_bytes for played in plays),
            live_bytes=self.allocator.allocated_bytes,
            reserved_bytes=max(played.reserved_peak_bytes for played in plays),
            tokens=tuple(played.allocated_bytes for played in reached),
            token_peaks=tuple(played.allocated_peak_bytes for played in reached),
            holders=holders,
            out_of_memory="" if plays[-1].oom is None else str(plays[-1].oom),
        )

    def snapshot(self) -> dict[str, Any]:
        """The last 100,000 events and what is live now, for PyTorch's memory viewer."""
        events = [
            Event("alloc" if change.is_malloc else "free", change.block, _allocation(change.n_bytes, change.tag))
            for change in self._events
        ]
        live = [(number, _allocation(block.requested, block.tag)) for block, number in self._live.items()]
        return viewer_snapshot(events, live)

    def _play(self, traces: Iterable[Trace]) -> tuple[list[Played], tuple[Holder, ...]]:
        """The replayed traces, as far as the card has room, and the holders at their highest peak."""
        plays: list[Played] = []
        peak_bytes = -1
        for trace in traces:
            before = {number: (block.size, block.tag) for block, number in self._live.items()}
            log = self._log = []
            plays.append(played := self._replay.play(trace))
            if played.allocated_peak_bytes > peak_bytes:
                peak_bytes, highest = played.allocated_peak_bytes, (before, log)
            if played.oom is not None:
                break
        return plays, _holders(_live_at_peak(*highest))

    def _free_previous(self, plays: list[Played]) -> None:
        """Free the last answer, now that the next is there; after an error this one's, as it unwinds."""
        failed = plays[-1].oom is not None
        for played in plays if failed else self._previous:
            self._replay.drop(played)
        self._previous = self._previous if failed else plays

    def _note(self, action: str, block: Block | None) -> None:
        if block is None:
            return
        is_malloc = action == "malloc"
        if is_malloc:
            number = self._live[block] = next(self._numbers)
        else:
            number = self._live.pop(block)
        self._log.append(_Change(is_malloc, number, block.size, block.tag))
        self._events.append(_Change(is_malloc, number, block.requested, block.tag))


def weights_bytes(answers: AnswerTraces) -> int:
    """Bytes that the weights alone reserve."""
    allocator = CachingAllocator(ENDLESS_BYTES, settings=environment_settings(os.environ))
    return Replay(allocator).play(answers.setup).reserved_bytes


def token_bytes(answers: AnswerTraces) -> int | None:
    """Bytes that every token of an answer adds: its keys and values. None where the cache is pruned, or more stays."""
    workload, text = answers.workload, answers.config.text_config
    if MODES[workload.mode].prunes or not workload.use_cache:
        return None
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cached = 2 * text.num_hidden_layers * text.num_key_value_heads * head_size
    return int(cached * workload.dtype.itemsize * workload.batch)


def max_answer_tokens(answers: AnswerTraces, prompt: Prompt) -> int | None:
    """Tokens of the longest answer that fits the context and, with nothing before it, the card.

    None where that can't be interpolated, or not as far, or would be replayed too long.
    """
    tokens = answers.room(prompt)
    traces = answers.interpolated(prompt, tokens) if answers.is_long(tokens) else None
    if traces is None:
        return None
    first, second = next(traces), next(traces)
    if tokens * len(second) > _MAX_OPERATIONS:
        return None
    card = answers.workload.card
    replay = _without_holders(answers, card)._replay
    every = enumerate(chain((first, second), traces))
    reached = next((before for before, trace in every if replay.play(trace).oom is not None), None)
    if reached is None:
        return tokens if prompt.tokens + tokens == answers.context else None
    # An answer's end could need what the next token would have needed.
    while reached and _without_holders(answers, card).answer(prompt, reached).out_of_memory:
        reached -= 1
    return reached


def smallest_card(answers: AnswerTraces, samples: Iterable[tuple[Prompt, int]], cards: Iterable[Card]) -> Card | None:
    """The first of `cards` on which all answers fit, one after the other, with the kernels of the traces' card."""
    pairs = list(samples)
    for card in cards:
        try:
            forecast = _without_holders(answers, card)
        except NoRoom:
            continue
        if not any(forecast.answer(prompt, tokens).out_of_memory for prompt, tokens in pairs):
            return card
    return None


def _without_holders(answers: AnswerTraces, card: Card) -> Forecast:
    """A forecast of figures alone, faster: without holders and snapshot."""
    forecast = Forecast(answers, card)
    forecast.allocator.observer = None
    forecast._live.clear()
    return forecast


def _allocation(n_bytes: int, tag: Any) -> Allocation:
    return Allocation(n_bytes, "", (), "", (), BEFORE) if tag is None else replace(tag, n_bytes=n_bytes)


def _live_at_peak(live: dict[int, tuple[int, Any]], log: list[_Change]) -> Iterable[tuple[int, Any]]:
    """Bytes and tags of the blocks at the peak, from those that were `live` at the start and the changes since."""
    total = peak = at = 0
    for position, change in enumerate(log, start=1):
        total += change.n_bytes if change.is_malloc else -change.n_bytes
        if total > peak:
            peak, at = total, position
    for change in log[:at]:
        if change.is_malloc:
            live[change.block] = change.n_bytes, change.tag
        else:
            del live[change.block]
    return live.values()


def _holders(live: Iterable[tuple[int, Any]]) -> tuple[Holder, ...]:
    """The lines that hold most, largest first."""
    sizes: dict[str, list[int]] = {}
    for n_bytes, tag in live:
        line = "the model, and what was there before" if tag is None or tag.line is None else str(tag.line)
        sizes.setdefault(line, []).append(n_bytes)
    holders = [Holder(sum(each), len(each), line) for line, each in sizes.items()]
    return tuple(sorted(holders, key=lambda holder: -holder.n_bytes)[:_MAX_HOLDERS])
