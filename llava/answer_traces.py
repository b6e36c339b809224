"""Traces of answers: the allocations that each makes, recorded on an endless simulated card and replayed on any."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from himap import HimapLlavaConfig, HimapLlavaForConditionalGeneration
from llava.answering import generate_and_keep
from llava.checkpoint import empty_model
from llava.forecast_config import SYSTEM_TOKENS
from llava.model_shape import image_token_count
from llava.modes import MODES, mode_flags, mode_without_effect, set_mode
from vram.cards import Card
from vram.explanation.allocations import Describing
from vram.forecasting.playing import ENDLESS_BYTES
from vram.replaying.marks import listening, mark
from vram.simulated.context import DEVICE, TOKEN, SimulatedCuda
from vram.simulated.remarks import ASSUMED, merged
from vram.simulated.repeated_layers import RepeatedLayers
from vram.simulated.trace import Recorder, Trace
from vram.simulated.trace_family import Family, interpolated

MAX_BATCH_TOKENS = 2**20  # prompts and answers together: the simulation does not know the values of longer tensors
_TESTED = ("5.17", "5.23")  # transformers
_STEPS = 7  # simulated at either end of a long answer
_FIRST_STEPS = 2  # of these, after the first: they free what the prompt left, as no other does


@dataclass(frozen=True)
class Workload:
    """Answering that is forecast: a model in a mode on a card, and how it generates."""

    model: str
    mode: str
    card: Card
    dtype: torch.dtype = torch.float16
    attention: str = "sdpa"  # eager where attentions are kept
    batch: int = 1
    use_cache: bool = True
    keep_attentions: bool = False
    every_step: bool = False
    flags: Mapping[str, Any] = field(default_factory=dict)  # of the mode, where they are not its defaults


@dataclass(frozen=True)
class Prompt:
    """Tokens of a prompt, those of its image included, and whether it has one, with how many of them before it."""

    tokens: int
    image: bool = True
    system: int = SYSTEM_TOKENS


@dataclass(frozen=True)
class _Answer:
    """Traces of one answer: to the first token, to each next, and to the end."""

    start: Trace
    steps: tuple[Trace, ...]
    end: Trace


@dataclass(frozen=True)
class LongAnswer:
    """Traces of answers that are put together: to the first token, to a few next, to each other one, and to the end."""

    start: Trace
    first: tuple[Trace, ...]
    step: Family
    end: Family

    def steps(self, tokens: int) -> range:
        """Tokens whose traces are those of `step`, in an answer of `tokens` tokens."""
        return range(2 + len(self.first), tokens + 1)

    def traces(self, tokens: int) -> Iterator[Trace]:
        """The traces of an answer of `tokens` tokens."""
        return chain((self.start, *self.first), map(self.step, self.steps(tokens)), (self.end(tokens),))


@dataclass
class AnswerTraces:
    """Traces of `workload`'s answers. Each pair of prompt and answer length is simulated once.

    The first answer is simulated twice, since it contains what is done only once. An answer's output is freed when the
    next one is there. Layers that are alike are not all run (`vram.simulated.repeated_layers`), but with `every_step`.

    In a long answer with a cache only the first steps and the last that the context allows are simulated. Those between
    are interpolated, if they differ in sizes alone and each size is on one line (`vram.simulated.trace_family`);
    `stepwise` counts the long answers where that was not so, `linear` the others. Answers without a cache are simulated
    to their end, or until the card can't hold them.
    """

    workload: Workload
    config: HimapLlavaConfig
    stepwise: int = 0
    linear: int = 0
    _known: dict[tuple[Prompt, int, bool], _Answer] = field(default_factory=dict)
    _count: int = 0
    _cuts: int = 1
    _output: list[object] = field(default_factory=list)
    _remarks: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)  # on each simulated answer, with its peak

    def __post_init__(self) -> None:
        _warn_untested()
        workload = self.workload
        token = next(each for each in count(TOKEN) if each not in _end_tokens(self.config))
        self._cuda = SimulatedCuda(replace(workload.card, total_bytes=ENDLESS_BYTES), token=token)
        self._recorder = Recorder(self._cuda.allocator)
        attention = "eager" if workload.keep_attentions else workload.attention
        with self._cuda:
            model = empty_model(self.config, DEVICE, dtype=workload.dtype, attn_implementation=attention).eval()
            self._cuda.take_workspace()
        self._model: HimapLlavaForConditionalGeneration = model
        set_mode(model, workload.mode, **workload.flags)
        if not workload.every_step:
            layers = RepeatedLayers(self._cuda, self._recorder, _part_of_cache)
            for each in model.modules():
                if isinstance(each, nn.ModuleList):
                    layers.watch(each)
        self._cuda.describe = Describing()
        self.setup = self._recorder.cut("setup")

    def of(self, prompt: Prompt, tokens: int) -> Iterator[Trace]:
        """The answer's traces: one to each token, and one to the end. Tensors that the program keeps stay allocated."""
        if self.is_long(tokens):
            if (answer := self.interpolated(prompt, tokens)) is not None:
                self.linear += 1
                yield from answer.traces(tokens)
                return
            self.stepwise += 1
        simulated = self._answer(prompt, tokens)
        yield from (simulated.start, *simulated.steps, simulated.end)

    @property
    def remarks(self) -> list[str]:
        """Lines on a mode without effect, on what was assumed, and on what the answer with the highest peak lacks."""
        highest = max(self._remarks, key=lambda each: each[0], default=(0, ()))[1]
        assumed = [[line for line in lines if line.startswith(ASSUMED)] for _, lines in self._remarks]
        remark = mode_without_effect(self.config, self.workload.mode, **self.workload.flags)
        return [remark] * bool(remark) + merged([*assumed, highest])

    def is_long(self, tokens: int) -> bool:
        """Whether an answer of `tokens` tokens is to be interpolated."""
        workload = self.workload
        return tokens > 2 * _STEPS and workload.use_cache and not workload.keep_attentions and not workload.every_step

    @property
    def context(self) -> int:
        """Limit of prompt and answer together, in tokens."""
        return int(self.config.text_config.max_position_embeddings)

    def reaches_end(self, prompt: Prompt, tokens: int) -> bool:
        """Whether the answer is simulated to its end, whatever the card holds."""
        if tokens <= 2 * _STEPS:
            return self.workload.use_cache
        return self.is_long(tokens) and self.interpolated(prompt, tokens) is not None

    def room(self, prompt: Prompt) -> int:
        """Tokens of the longest answer that the context leaves room for, and a simulation can follow."""
        return min(self.context, MAX_BATCH_TOKENS // self.workload.batch) - prompt.tokens

    def interpolated(self, prompt: Prompt, tokens: int) -> LongAnswer | None:
        """Long answers, of up to `tokens` tokens, from their first and last steps; None where sizes are not linear."""
        first = self._answer(prompt, _STEPS, whole=True)
        # With the longest answer's last steps, those of all lengths are known.
        for longest in dict.fromkeys((max(self.room(prompt), tokens), tokens)):
            if (answer := self._between(first, prompt, longest)) is not None:
                return answer
        return None

    def _between(self, first: _Answer, prompt: Prompt, longest: int) -> LongAnswer | None:
        """Answers that begin as `first`, by the last steps of the one of `longest` tokens."""
        last = self._answer(self._longer(prompt, longest - _STEPS), _STEPS, whole=True)
        alike = 2 + _FIRST_STEPS
        known = dict(enumerate(first.steps[_FIRST_STEPS:], start=alike))
        known |= dict(enumerate(last.steps[_FIRST_STEPS:], start=alike + longest - _STEPS))
        step = interpolated(known)
        end = interpolated({_STEPS: first.end, longest: last.end})
        return None if step is None or end is None else LongAnswer(first.start, first.steps[:_FIRST_STEPS], step, end)

    def _longer(self, prompt: Prompt, tokens: int) -> Prompt:
        """A prompt that leaves a cache like that of `prompt` and so many tokens of its answer.

        They stand before the image where the mode allows that: text after it is scored, token by token.
        """
        mode = MODES[self.workload.mode]
        flags = mode_flags(self.config, mode.name, **self.workload.flags)
        moved = tokens if flags.get(mode.system_length) is None else 0
        return replace(prompt, tokens=prompt.tokens + tokens, system=prompt.system + moved)

    def _answer(self, prompt: Prompt, tokens: int, *, whole: bool = False) -> _Answer:
        known = self._known.get((prompt, tokens, whole))
        if known is None:
            known = self._simulated(prompt, tokens, whole)
            if self._count > 1:
                self._known[prompt, tokens, whole] = known
        return known

    def _simulated(self, prompt: Prompt, tokens: int, whole: bool) -> _Answer:
        traces: list[Trace] = []
        # A few steps are soon done, and then are known for larger cards too.
        may_stop = not whole and not (self.workload.use_cache and tokens <= 2 * _STEPS)
        name = f"answer {self._count}"

        def cut(_: str = "") -> None:
            # Memory that the prompt left is freed long after: it has a name.
            traces.append(self._recorder.cut("" if traces else name).alone(len(traces), (name,)))
            if may_stop and self._needs_more_than_the_card():
                raise _CardIsFull

        with self._cuda, self._cuda.remarking() as remarks, listening(cut):
            self._cuda.allocator.reset_peak()
            try:
                output = self._generate(prompt, tokens)
            except _CardIsFull:
                output = []
            cut()
            peak_bytes = self._cuda.allocator.stats.requested_bytes.peak
            self._remarks.append((peak_bytes, remarks.lines(peak_bytes)))
            self._output[:] = output
            del output
            self._recorder.cut()  # only now is the last answer's freed, as one variable in a loop does
        self._check_nothing_is_left()
        self._count += 1
        self._cuts += len(traces) + 1
        return _Answer(traces[0], tuple(traces[1:-1]), traces[-1])

    def _check_nothing_is_left(self) -> None:
        if left := self._recorder.alive(1, self._cuts):
            left_bytes = sum(block.requested for block in left)
            raise RuntimeError(f"an answer must leave nothing beyond the next one, got {left_bytes} B: {left[0].tag}")

    def _needs_more_than_the_card(self) -> bool:
        """Whether this answer and the weights alone are more than the card has: it fails before this in any case."""
        card = self.workload.card
        earlier = sum(block.size for block in self._recorder.alive(1, self._cuts))
        return self._cuda.allocator.allocated_bytes - earlier > card.total_bytes - card.context_bytes

    @torch.inference_mode()
    def _generate(self, prompt: Prompt, tokens: int) -> list[object]:
        """Generate an answer; returns what the program keeps until the next answer is there."""
        inputs = self._inputs(prompt)
        options = {"logits_processor": [_TokenMarks()], "min_new_tokens": tokens, "max_new_tokens": tokens}
        if self.workload.keep_attentions:
            return [*generate_and_keep(self._model, inputs, {**options, "do_sample": False})]
        self._model.generate(**inputs, **options, do_sample=False, use_cache=self.workload.use_cache)
        return []

    def _inputs(self, prompt: Prompt) -> dict[str, Any]:
        """Input ids and attention mask (batch, tokens), pixel values (batch, 3, side, side)."""
        config, batch, side = self.config, self.workload.batch, self.config.vision_config.image_size
        ids = torch.full((batch, prompt.tokens), 2 if config.image_token_id == 1 else 1)
        if prompt.image:
            ids[:, prompt.system : prompt.system + image_token_count(config)] = config.image_token_id
        inputs = {"input_ids": ids.to(DEVICE), "attention_mask": torch.ones_like(ids).to(DEVICE)}
        if prompt.image:
            inputs["pixel_values"] = torch.zeros(batch, 3, side, side).to(DEVICE, self.workload.dtype)
        return inputs


def _part_of_cache(layer: Any, arguments: dict[str, Any]) -> object:
    """The part of a KV cache that a layer changes; None for a layer without one."""
    cache = arguments.get("past_key_values")
    return None if cache is None else cache.layers[layer.self_attn.layer_idx]


def _end_tokens(config: HimapLlavaConfig) -> set[int]:
    """Ids of the tokens that end an answer."""
    ids = [getattr(part, "eos_token_id", None) for part in (config, config.text_config)]
    return {token for each in ids if each is not None for token in (each if isinstance(each, list) else [each])}


@functools.cache
def _warn_untested() -> None:
    if ".".join(transformers.__version__.split(".")[:2]) not in _TESTED:
        warnings.warn(
            f"forecasts are tested with transformers {' and '.join(_TESTED)}, not {transformers.__version__}: "
            "unchecked is that its models take no other way for fake tensors than for real ones",
            stacklevel=4,
        )


class _CardIsFull(Exception):
    """The rest of an answer need not be simulated."""


class _TokenMarks:
    """Marks every token; has the protocol of transformers' LogitsProcessor."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        mark("token")
        return scores
