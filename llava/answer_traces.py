"""Answers simulated on a card without end, as traces: what each asks of the allocator, to be asked of any card."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Any

import torch
import transformers
from torch import Tensor

from himap import HimapLlavaConfig, HimapLlavaForConditionalGeneration
from llava.checkpoint import empty_model
from llava.model_shape import image_token_count
from llava.modes import set_mode
from vram.cards import Card
from vram.explanation.allocations import Describing
from vram.replaying.marks import listening, mark
from vram.simulated.context import DEVICE, TOKEN, SimulatedCuda
from vram.simulated.trace import Recorder, Trace, interpolated

MOST_TOKENS = 2**20  # of prompts and answers in a batch: the values of more are not followed, see vram's KnownValues
SYSTEM_TOKENS = 35  # before the image, in LLaVA-1.5's prompt
ENDLESS_BYTES = 2**50
_TESTED = ("5.17", "5.23")  # transformers
_STEPS = 7  # simulated at either end of a long answer
_UNLIKE = 2  # of these, after the first: they free what the prompt left, as no other does


@dataclass(frozen=True)
class Asked:
    """What is forecast: a model, a mode, and how it is asked. `attention` is eager where attentions are kept."""

    model: str
    mode: str
    card: Card
    dtype: torch.dtype = torch.float16
    attention: str = "sdpa"
    batch: int = 1
    use_cache: bool = True
    keep_attentions: bool = False
    every_step: bool = False


@dataclass(frozen=True)
class Prompt:
    """How many tokens, those of its image included, and whether it has one."""

    tokens: int
    image: bool = True


@dataclass(frozen=True)
class _Answer:
    """Traces of one answer: to the first token, to each next, and to the end."""

    start: Trace
    steps: tuple[Trace, ...]
    end: Trace


@dataclass
class Answers:
    """Each answer of as many tokens to a prompt of as many is simulated once; the first one twice, since what is done
    once is in it. What an answer leaves is let go when the next one is there.

    Of a long answer with a cache only the first steps and the last that the context allows are simulated, and those
    between put together from them, where they differ from one another in sizes alone and each size lies on one line
    (see `vram.simulated.trace.interpolated`); `stepwise` counts the long answers where that was not so. Others are
    simulated until they end, or until the card can't hold them any more.
    """

    asked: Asked
    config: HimapLlavaConfig
    stepwise: int = 0
    linear: int = 0
    _known: dict[tuple[Prompt, int, bool], _Answer] = field(default_factory=dict)
    _count: int = 0
    _cuts: int = 1
    _kept: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        _warn_untested()
        asked = self.asked
        token = next(each for each in count(TOKEN) if each not in _ends(self.config))
        self._cuda = SimulatedCuda(replace(asked.card, total_bytes=ENDLESS_BYTES), token=token)
        self._recorder = Recorder(self._cuda.allocator)
        attention = "eager" if asked.keep_attentions else asked.attention
        with self._cuda:
            model = empty_model(self.config, DEVICE, dtype=asked.dtype, attn_implementation=attention).eval()
            self._cuda.take_workspace()
        self._model: HimapLlavaForConditionalGeneration = model
        set_mode(model, asked.mode)
        self._cuda.describe = Describing()
        self.setup = self._recorder.cut("setup")

    def of(self, prompt: Prompt, tokens: int) -> Iterator[Trace]:
        """The answer's traces: one to each token, and one to the end. What the program keeps of it is left alive."""
        if self.in_steps(tokens):
            if (traces := self.put_together(prompt, tokens)) is not None:
                self.linear += 1
                yield from traces
                return
            self.stepwise += 1
        answer = self._answer(prompt, tokens)
        yield from (answer.start, *answer.steps, answer.end)

    def in_steps(self, tokens: int) -> bool:
        """Whether an answer of so many is to be put together."""
        asked = self.asked
        return tokens > 2 * _STEPS and asked.use_cache and not asked.keep_attentions and not asked.every_step

    @property
    def context(self) -> int:
        """Tokens of prompt and answer at most."""
        return int(self.config.text_config.max_position_embeddings)

    def to_the_end(self, prompt: Prompt, tokens: int) -> bool:
        """Whether the answer is simulated to its end, whatever the card holds."""
        if tokens <= 2 * _STEPS:
            return self.asked.use_cache
        return self.in_steps(tokens) and self.put_together(prompt, tokens) is not None

    def room(self, prompt: Prompt) -> int:
        """Tokens of the longest answer: what the context leaves, and a simulation can follow."""
        return min(self.context, MOST_TOKENS // self.asked.batch) - prompt.tokens

    def put_together(self, prompt: Prompt, tokens: int) -> Iterator[Trace] | None:
        """A long answer's traces from its first and last steps; None where sizes are not linear."""
        first = self._answer(prompt, _STEPS, whole=True)
        # With the longest answer's last steps, those of all lengths are known.
        for longest in dict.fromkeys((max(self.room(prompt), tokens), tokens)):
            if (rest := self._between(first, prompt, tokens, longest)) is not None:
                return chain((first.start,), rest)
        return None

    def _between(self, first: _Answer, prompt: Prompt, tokens: int, longest: int) -> Iterator[Trace] | None:
        """All traces but that to the first token, from the last steps of the answer of `longest` tokens."""
        last = self._answer(replace(prompt, tokens=prompt.tokens + longest - _STEPS), _STEPS, whole=True)
        alike = 2 + _UNLIKE
        known = dict(enumerate(first.steps[_UNLIKE:], start=alike))
        known |= dict(enumerate(last.steps[_UNLIKE:], start=alike + longest - _STEPS))
        step = interpolated(known)
        end = interpolated({_STEPS: first.end, longest: last.end})
        if step is None or end is None:
            return None
        return chain(first.steps[:_UNLIKE], map(step, range(alike, tokens + 1)), (end(tokens),))

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
        may_cut = not whole and not (self.asked.use_cache and tokens <= 2 * _STEPS)
        name = f"answer {self._count}"

        def cut(_: str = "") -> None:
            # What the prompt left is freed long after: it has a name.
            traces.append(self._recorder.cut("" if traces else name).alone(len(traces), (name,)))
            if may_cut and self._needs_more_than_the_card():
                raise _Enough

        with self._cuda, listening(cut):
            try:
                kept = self._run(prompt, tokens)
            except _Enough:
                kept = []
            cut()
            self._kept[:] = kept
            del kept
            self._recorder.cut()  # only now is the last answer's let go, as one variable in a loop does
        if left := self._recorder.alive(1, self._cuts):
            kept_bytes = sum(block.requested for block in left)
            raise RuntimeError(f"an answer must leave nothing beyond the next one, got {kept_bytes} B: {left[0].tag}")
        self._count += 1
        self._cuts += len(traces) + 1
        return _Answer(traces[0], tuple(traces[1:-1]), traces[-1])

    def _needs_more_than_the_card(self) -> bool:
        """Whether this answer and the weights alone are more than the card has: it dies before this, whatever else is
        there."""
        card = self.asked.card
        earlier = sum(block.size for block in self._recorder.alive(1, self._cuts))
        return self._cuda.allocator.allocated_bytes - earlier > card.total_bytes - card.context_bytes

    @torch.inference_mode()
    def _run(self, prompt: Prompt, tokens: int) -> list[object]:
        """Answer; what the program keeps until the next answer is there."""
        asked, config = self.asked, self.config
        image_tokens = image_token_count(config)
        ids = torch.full((asked.batch, prompt.tokens), 2 if config.image_token_id == 1 else 1)
        if prompt.image:
            ids[:, SYSTEM_TOKENS : SYSTEM_TOKENS + image_tokens] = config.image_token_id
        side = config.vision_config.image_size
        inputs: dict[str, Any] = {
            "input_ids": ids.to(DEVICE),
            "attention_mask": torch.ones_like(ids).to(DEVICE),
            "logits_processor": [_Marking()],
            "min_new_tokens": tokens,
            "max_new_tokens": tokens,
            "do_sample": False,
            "use_cache": asked.use_cache and not asked.keep_attentions,
        }
        if prompt.image:
            inputs["pixel_values"] = torch.zeros(asked.batch, 3, side, side).to(DEVICE, asked.dtype)
        if not asked.keep_attentions:
            self._model.generate(**inputs)
            return []
        logits: list[Tensor] = []
        hook = self._model.register_forward_hook(lambda _module, _inputs, output: logits.append(output.logits))
        try:
            everything = {"output_attentions": True, "output_scores": True, "return_dict_in_generate": True}
            output = self._model.generate(**inputs, **everything, logits_to_keep=0)
        finally:
            hook.remove()
        return [output, logits]


def _ends(config: HimapLlavaConfig) -> set[int]:
    """Tokens that end an answer."""
    found = [getattr(part, "eos_token_id", None) for part in (config, config.text_config)]
    return {each for ids in found if ids is not None for each in (ids if isinstance(ids, list) else [ids])}


@functools.cache
def _warn_untested() -> None:
    if ".".join(transformers.__version__.split(".")[:2]) not in _TESTED:
        warnings.warn(
            f"forecasts are tested with transformers {' and '.join(_TESTED)}, not {transformers.__version__}: "
            "unchecked is that its models take no other way for fake tensors than for real ones",
            stacklevel=4,
        )


class _Enough(Exception):
    """The rest of an answer need not be simulated."""


class _Marking:
    """Of the protocol of transformers' LogitsProcessor."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        mark("token")
        return scores
