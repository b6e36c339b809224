"""Memory that answering needs on a GPU, forecast without one: the real model code on a simulated card."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from llava.answer_traces import AnswerTraces, LongAnswer, Prompt
from llava.modes import MODES
from vram.cards import Card
from vram.forecasting.playing import ENDLESS_BYTES, CardPlayer, Holder, NoRoom, first_that_fits
from vram.simulated.allocator import CachingAllocator
from vram.simulated.allocator_settings import environment_settings
from vram.simulated.bounds import SegmentBound, new_segments_bytes
from vram.simulated.trace import Played, Replay, Trace

_MAX_OPERATIONS = 2**24  # of a longest answer that is replayed: some ten seconds


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


class Forecast:
    """Answers on one card, one after the other. Raises NoRoom for a card that does not hold the model's weights."""

    def __init__(
        self, answers: AnswerTraces, card: Card | None = None, *, named: bool = True, logged: bool = False
    ) -> None:
        """`card`: default is the one the traces were made for. `named`: holders are wanted. `logged`: a snapshot is."""
        self.answers = answers
        self.player = CardPlayer(card or answers.workload.card, answers.setup, named=named, logged=logged)
        self._samples = 0
        self._previous: list[Played] = []

    def answer(self, prompt: Prompt, tokens: int) -> SampleForecast:
        """Forecast one more answer, of `tokens` tokens. None may follow one that ran out of memory."""
        plays, holders = self.player.play(self.answers.of(prompt, tokens))
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
            live_bytes=self.player.allocator.allocated_bytes,
            reserved_bytes=max(played.reserved_peak_bytes for played in plays),
            tokens=tuple(played.allocated_bytes for played in reached),
            token_peaks=tuple(played.allocated_peak_bytes for played in reached),
            holders=holders,
            out_of_memory="" if plays[-1].oom is None else str(plays[-1].oom),
        )

    def _free_previous(self, plays: list[Played]) -> None:
        """Free the last answer, now that the next is there; after an error this one's, as it unwinds."""
        failed = plays[-1].oom is not None
        for played in plays if failed else self._previous:
            self.player.drop(played)
        self._previous = self._previous if failed else plays


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
    answer = answers.interpolated(prompt, tokens) if answers.is_long(tokens) else None
    if answer is None or tokens * len(answer.first[0]) > _MAX_OPERATIONS:
        return None
    card = answers.workload.card
    player = Forecast(answers, card, named=False).player
    reached = None if _has_room_anyway(player, answer, tokens) else _tokens_reached(player, answer, tokens)
    if reached is None:
        return tokens if prompt.tokens + tokens == answers.context else None
    most, reserved_bytes = reached
    # An answer's end could need what the next token would have needed.
    if answers.is_long(most) and _ends_anyway(player, answer.end(most), reserved_bytes):
        return most
    while most and Forecast(answers, card, named=False).answer(prompt, most).out_of_memory:
        most -= 1
    return most


def _tokens_reached(player: CardPlayer, answer: LongAnswer, tokens: int) -> tuple[int, int] | None:
    """How many tokens there is room for, and bytes reserved then; None where there is room for all, and their end."""
    reserved_bytes = player.built.reserved_bytes
    for before, trace in enumerate(answer.traces(tokens)):
        played = player.replay.play(trace)
        if played.oom is not None:
            return before, reserved_bytes
        reserved_bytes = played.reserved_bytes
    return None


def _ends_anyway(player: CardPlayer, end: Trace, reserved_bytes: int) -> bool:
    """Whether there is room for an answer's end wherever blocks are, after so many bytes were reserved; False where
    only playing it can say that."""
    new_bytes = new_segments_bytes(end, player.allocator.settings.large_segment_bytes)
    return reserved_bytes + new_bytes <= _room_bytes(player)


def _has_room_anyway(player: CardPlayer, answer: LongAnswer, tokens: int) -> bool:
    """Whether the card has room for an answer of `tokens` tokens wherever its blocks are; False where only playing it
    can say that."""
    bound, allocator = SegmentBound(), player.allocator
    bound.add((answer.start, *answer.first))
    if not bound.add_family(answer.step, answer.steps(tokens)):
        return False
    bound.add((answer.end(tokens),))
    most_bytes = bound.n_bytes(allocator.reserved_bytes, allocator.settings.large_segment_bytes)
    return most_bytes <= _room_bytes(player)


def _room_bytes(player: CardPlayer) -> int:
    """Bytes that all segments may come to; 0, so that nothing is known to fit, with settings that have other rules."""
    allocator = player.allocator
    if not allocator.is_plain or allocator.allowed_bytes is not None:
        return 0
    return allocator.free_bytes + allocator.reserved_bytes


def smallest_card(answers: AnswerTraces, samples: Iterable[tuple[Prompt, int]], least_bytes: int) -> Card | None:
    """The smallest listed card of `least_bytes` or more on which all answers fit, one after the other, with the kernels
    of the traces' card."""
    pairs = list(samples)

    def fits(card: Card) -> bool:
        try:
            forecast = Forecast(answers, card, named=False)
        except NoRoom:
            return False
        return not any(forecast.answer(prompt, tokens).out_of_memory for prompt, tokens in pairs)

    return first_that_fits(fits, least_bytes)
