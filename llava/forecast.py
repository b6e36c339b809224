"""What answering would need of a GPU, found without one: the real model code on a simulated card."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from himap import HimapLlavaConfig
from llava.answer_traces import ENDLESS_BYTES, SYSTEM_TOKENS, Answers, Prompt
from llava.checkpoint import empty_model, read_config, reading
from llava.errors import BadInput, shown
from llava.hf_layout import check_tokenizer_files, hf_config, hf_tokenizer
from llava.model_shape import image_token_count
from llava.modes import MODES
from llava.original import is_original, original_config, original_tokenizer
from llava.presets import PRESETS
from llava.shapes import SHAPES, llava_config, our_tokenizer
from vram.cards import Card
from vram.explanation.allocations import BEFORE, Allocation, Event
from vram.simulated.allocator import Block, CachingAllocator
from vram.simulated.trace import Played, Replay

_ROPES = {"default", *ROPE_INIT_FUNCTIONS} - {"longrope"}
_MOST_PARAMETERS = 2**40
_HOLDERS = 10
_MOST_OPERATIONS = 2**24  # of a longest answer that is played: some ten seconds
_MOST_EVENTS = 100_000  # of the snapshot; the oldest are dropped, as PyTorch's own ring buffer does


@dataclass(frozen=True)
class Holder:
    """What one line of code had allocated at a sample's peak; bytes in blocks."""

    n_bytes: int
    count: int
    line: str


@dataclass(frozen=True)
class SampleForecast:
    """One answer. Bytes are the allocator's: `peak` and `live` in blocks, `reserved` in segments. `tokens` has what is
    alive at each token, `token_peaks` the most until then, since the token before. `out_of_memory` is CUDA's message
    where the card had no room; figures are then those until it failed."""

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


@dataclass
class Forecast:
    """Answers on one card, one after the other. Raises NoRoom for a card that does not hold the model's weights."""

    answers: Answers
    card: Card | None = None  # another than the answers were asked for
    _alive: dict[Block, int] = field(default_factory=dict)  # by which number of block
    _numbers: Iterator[int] = field(default_factory=count)
    # What was done: whether a malloc, the block's number, its bytes, and its tag.
    _events: deque[tuple[bool, int, int, Any]] = field(default_factory=lambda: deque(maxlen=_MOST_EVENTS))
    _log: list[tuple[bool, int, int, Any]] = field(default_factory=list)  # of one play

    def __post_init__(self) -> None:
        card = self.card or self.answers.asked.card
        self.allocator = CachingAllocator(card.total_bytes, card.context_bytes)
        self.allocator.observer = self._note
        self._replay = Replay(self.allocator)
        self._samples = 0
        self._previous: list[Played] = []
        built = self._replay.play(self.answers.setup)
        if built.oom is not None:
            raise NoRoom(str(built.oom))

    def answer(self, prompt: Prompt, tokens: int) -> SampleForecast:
        """One more, of so many tokens. After one that had no room nothing may follow."""
        plays: list[Played] = []
        most_bytes = -1
        for trace in self.answers.of(prompt, tokens):
            before = {key: (block.size, block.tag) for block, key in self._alive.items()}
            log = self._log = []
            plays.append(played := self._replay.play(trace))
            if played.allocated_peak_bytes > most_bytes:
                most_bytes, highest = played.allocated_peak_bytes, (before, log)
            if played.oom is not None:
                break
        if len(plays) <= tokens and plays[-1].oom is None:
            raise RuntimeError(f"traces must lead to the answer's end or to where there is no room, got {len(plays)}")
        failed = plays[-1].oom is not None  # then the error unwinds the sample, and the last answer is still there
        for played in plays if failed else self._previous:
            self._replay.drop(played)
        self._previous = self._previous if failed else plays
        reached = plays[:-1]  # the last led to the end, or to where there was no room
        self._samples += 1
        return SampleForecast(
            sample=self._samples - 1,
            prompt_tokens=prompt.tokens,
            answer_tokens=tokens,
            peak_bytes=most_bytes,
            live_bytes=self.allocator.allocated_bytes,
            reserved_bytes=max(played.reserved_peak_bytes for played in plays),
            tokens=tuple(played.allocated_bytes for played in reached),
            token_peaks=tuple(played.allocated_peak_bytes for played in reached),
            holders=_ranked(_at_peak(*highest)),
            out_of_memory="" if plays[-1].oom is None else str(plays[-1].oom),
        )

    def snapshot(self) -> dict[str, Any]:
        """The last 100,000 events and what is alive now, for PyTorch's memory viewer."""
        from vram.explanation.snapshot import viewer_snapshot

        def told(size: int, tag: Any) -> Allocation:
            return Allocation(size, "", (), "", (), BEFORE) if tag is None else replace(tag, n_bytes=size)

        events = [Event("alloc" if malloc else "free", key, told(size, tag)) for malloc, key, size, tag in self._events]
        return viewer_snapshot(events, [(key, told(block.requested, block.tag)) for block, key in self._alive.items()])

    def _note(self, action: str, block: Block | None) -> None:
        if block is None:
            return
        malloc = action == "malloc"
        if malloc:
            key = self._alive[block] = next(self._numbers)
        else:
            key = self._alive.pop(block)
        self._log.append((malloc, key, block.size, block.tag))
        self._events.append((malloc, key, block.requested, block.tag))


def weights_bytes(answers: Answers) -> int:
    """What the weights alone reserve."""
    return Replay(CachingAllocator(ENDLESS_BYTES)).play(answers.setup).reserved_bytes


def token_bytes(answers: Answers) -> int | None:
    """What every token of an answer adds for good: its keys and values. None where more than those stays."""
    asked, text = answers.asked, answers.config.text_config
    if MODES[asked.mode].prunes or not asked.use_cache:
        return None
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * text.num_key_value_heads * head_size * asked.dtype.itemsize * asked.batch)


def most_tokens(answers: Answers, prompt: Prompt) -> int | None:
    """Of the longest answer that fits the context and, with nothing before it, the card. None where that can't be put
    together, or not as long, or would be played too long."""
    tokens = answers.room(prompt)
    traces = answers.put_together(prompt, tokens) if answers.in_steps(tokens) else None
    if traces is None:
        return None
    first, second = next(traces), next(traces)
    if tokens * len(second) > _MOST_OPERATIONS:
        return None
    traces = chain((first, second), traces)
    replay = _silent(answers, answers.asked.card)._replay
    reached = next((before for before, trace in enumerate(traces) if replay.play(trace).oom is not None), None)
    if reached is None:
        return tokens if prompt.tokens + tokens == answers.context else None
    # An answer's end could need what the next token would have needed.
    while reached and _silent(answers, answers.asked.card).answer(prompt, reached).out_of_memory:
        reached -= 1
    return reached


def smallest_card(answers: Answers, wanted: Iterable[tuple[Prompt, int]], cards: Iterable[Card]) -> Card | None:
    """The first of `cards` on which all answers fit, one after the other, as kernels for the asked card need it."""
    pairs = list(wanted)
    for card in cards:
        try:
            forecast = _silent(answers, card)
        except NoRoom:
            continue
        if not any(forecast.answer(prompt, tokens).out_of_memory for prompt, tokens in pairs):
            return card
    return None


def _silent(answers: Answers, card: Card) -> Forecast:
    """A forecast of figures alone, faster: without holders and snapshot."""
    forecast = Forecast(answers, card)
    forecast.allocator.observer = None
    forecast._alive.clear()
    return forecast


def least_prompt_tokens(config: HimapLlavaConfig) -> int:
    """Of a short question: the system's words, the image, and 16 tokens of text."""
    return SYSTEM_TOKENS + image_token_count(config) + 16


def check_prompt_tokens(config: HimapLlavaConfig, tokens: int) -> None:
    """Raise BadInput for a prompt that does not hold the image."""
    least = SYSTEM_TOKENS + image_token_count(config) + 1
    if tokens < least:
        raise BadInput(f"the prompt must have at least {least} tokens, its image's included, got {tokens}")


def config_of(model: str) -> HimapLlavaConfig:
    """Of a preset, or of a folder in either layout: its config is enough. Raises BadInput where there is none."""
    if model in PRESETS:
        return llava_config(SHAPES[model], our_tokenizer())
    folder = Path(model)
    if not folder.is_dir():
        raise BadInput(f"the model must be one of {', '.join(PRESETS)} or a folder with a config, got {shown(model)}")
    raw = read_config(folder)
    if raw.get("quantization_config") is not None:
        raise BadInput(
            "a forecast's config must have no quantization_config, as quantised kernels are not modelled, got one in "
            f"{shown(str(folder))}"
        )
    config = original_config(folder, raw) if is_original(raw) else hf_config(folder)
    _check_possible(config, folder)
    _check_model(config, folder)
    return config


def _check_possible(config: HimapLlavaConfig, folder: Path) -> None:
    """Raise BadInput for a config that can be read, and of which no model can be made that answers."""
    text, vision, layer = config.text_config, config.vision_config, config.vision_feature_layer
    side, patch = vision.image_size, vision.patch_size
    layers = layer if isinstance(layer, list) else [layer]
    deepest = vision.num_hidden_layers
    acts = {config.projector_hidden_act, text.hidden_act, vision.hidden_act}
    rope = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    positive = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = {
        **{f"text_config.{name}": getattr(text, name) for name in (*positive, "head_dim")},
        **{f"vision_config.{name}": getattr(vision, name) for name in (*positive, "patch_size")},
    }
    for name, possible, rule, value in (
        *((name, value is None or value > 0, "be more than 0", value) for name, value in sizes.items()),
        (
            "num_key_value_heads",
            text.num_key_value_heads > 0 and text.num_attention_heads % text.num_key_value_heads == 0,
            f"divide its {text.num_attention_heads} heads",
            text.num_key_value_heads,
        ),
        ("image_size", side >= patch, f"hold a patch of {patch}", side),
        ("num_channels", vision.num_channels == 3, "be 3, as images have", vision.num_channels),
        (
            "vision_feature_layer",
            layers and all(-deepest - 1 <= each <= deepest for each in layers),
            f"be in {-deepest - 1}..{deepest}",
            layer,
        ),
        ("activations", acts <= ACT2FN.keys(), "be those of transformers", ", ".join(map(str, acts - ACT2FN.keys()))),
        (
            "image_token_index",
            0 <= config.image_token_id < text.vocab_size,
            f"be in 0..{text.vocab_size - 1}, the vocabulary",
            config.image_token_id,
        ),
        (
            "pad_token_id",
            text.pad_token_id is None or -text.vocab_size <= text.pad_token_id < text.vocab_size,
            f"be below {text.vocab_size}, the vocabulary",
            text.pad_token_id,
        ),
        # longrope's first answer makes frequencies that stay with the model, and no later answer frees them.
        ("rope_type", rope in _ROPES, f"be one of {', '.join(sorted(_ROPES))}", rope),
    ):
        if not possible:
            raise BadInput(f"the config's {name} must {rule}, got {shown(value)} in {shown(str(folder))}")


def _check_model(config: HimapLlavaConfig, folder: Path) -> None:
    """Raise BadInput where transformers makes no model of the config, or one that is beyond every card."""
    model = reading(folder, "config.json", lambda: empty_model(config, torch.device("meta")))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > _MOST_PARAMETERS:
        raise BadInput(
            f"the config's model must have at most {_MOST_PARAMETERS:,} parameters, got {parameters:,} in "
            f"{shown(str(folder))}"
        )


def tokenizer_of(model: str) -> Any:
    """Of a preset or folder. Raises BadInput where it has none."""
    if model in PRESETS:
        return our_tokenizer()
    folder = Path(model)
    raw = read_config(folder)
    if not is_original(raw):
        return hf_tokenizer(folder, hf_config(folder))
    check_tokenizer_files(folder)
    return original_tokenizer(folder, raw)


def _at_peak(alive: dict[int, tuple[int, Any]], log: list[tuple[bool, int, int, Any]]) -> Iterable[tuple[int, Any]]:
    """Bytes and tags of what was alive when most was, from what was at the start and what was done then."""
    total = most = at = 0
    for position, (malloc, _, size, _) in enumerate(log, start=1):
        total += size if malloc else -size
        if total > most:
            most, at = total, position
    for malloc, key, size, tag in log[:at]:
        if malloc:
            alive[key] = size, tag
        else:
            del alive[key]
    return alive.values()


def _ranked(alive: Iterable[tuple[int, Any]]) -> tuple[Holder, ...]:
    by_line: dict[str, list[int]] = {}
    for size, tag in alive:
        line = "the model, and what was there before" if tag is None or tag.line is None else str(tag.line)
        by_line.setdefault(line, []).append(size)
    found = [Holder(sum(sizes), len(sizes), line) for line, sizes in by_line.items()]
    return tuple(sorted(found, key=lambda holder: -holder.n_bytes)[:_HOLDERS])
