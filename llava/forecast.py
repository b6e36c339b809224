"""What answering would need of a GPU, found without one: the real model code on a simulated card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from himap import HimapLlavaConfig, HimapLlavaForConditionalGeneration
from llava.checkpoint import empty_model, image_token_count, read_config, reading
from llava.errors import BadInput, shown
from llava.modes import set_mode
from llava.original import is_original
from llava.presets import PRESETS
from llava.shapes import SHAPES, llava_config, our_tokenizer
from vram.marks import listening, mark
from vram.simulated.cards import Card
from vram.simulated.context import DEVICE, SimulatedCuda
from vram.tracing import Allocation, SimulatedTracer

SYSTEM_TOKENS = 35  # before the image, in LLaVA-1.5's prompt
_HOLDERS = 10


@dataclass(frozen=True)
class Holder:
    """What one line of code had allocated at a sample's peak."""

    n_bytes: int
    count: int
    line: str


@dataclass(frozen=True)
class SampleForecast:
    """One answer. Bytes are the allocator's: `peak` and `live` in blocks, `reserved` in segments, `tokens` live at each
    token. `out_of_memory` is CUDA's message where the card had no room; figures are then those until it failed."""

    sample: int
    answer_tokens: int
    peak_bytes: int
    live_bytes: int
    reserved_bytes: int
    tokens: tuple[int, ...]
    holders: tuple[Holder, ...]
    out_of_memory: str = ""


@dataclass
class Asked:
    """What is forecast: a model, a mode, and how it is asked. `attention` is eager where attentions are kept."""

    model: str
    mode: str
    card: Card
    prompt_tokens: int
    dtype: torch.dtype = torch.float16
    attention: str = "sdpa"
    batch: int = 1
    use_cache: bool = True
    keep_attentions: bool = False
    _kept: list[object] = field(default_factory=list, repr=False)


def forecast(asked: Asked, answers: Sequence[int]) -> Iterator[SampleForecast]:
    """Answers of so many tokens each, one after the other on one card; ends with the one that has no room.

    Each is what a real run would make: the same model code, the same allocator rules. Raises BadInput for a model that
    is not there, and for a prompt that does not hold the image.
    """
    config = _config(asked.model)
    image_tokens = image_token_count(config)
    if asked.prompt_tokens <= SYSTEM_TOKENS + image_tokens:
        least = SYSTEM_TOKENS + image_tokens + 1
        raise BadInput(f"the prompt must have at least {least} tokens, its image's included, got {asked.prompt_tokens}")
    cuda = SimulatedCuda(asked.card)
    attention = "eager" if asked.keep_attentions else asked.attention
    try:
        with cuda:
            model = empty_model(config, DEVICE, dtype=asked.dtype, attn_implementation=attention).eval()
    except torch.OutOfMemoryError as error:
        raise BadInput(f"the card must hold the model's weights at least: {error}") from None
    set_mode(model, asked.mode)
    with SimulatedTracer(cuda, DEVICE) as tracer:
        for sample, tokens in enumerate(answers):
            one = _sample(asked, model, cuda, tracer, sample, tokens)
            yield one
            if one.out_of_memory:
                return


def least_prompt_tokens(model: str) -> int:
    """Of a short question: the system's words, the image, and 16 tokens of text. Raises BadInput as `forecast` does."""
    return SYSTEM_TOKENS + image_token_count(_config(model)) + 16


def _sample(
    asked: Asked,
    model: HimapLlavaForConditionalGeneration,
    cuda: SimulatedCuda,
    tracer: SimulatedTracer,
    sample: int,
    tokens: int,
) -> SampleForecast:
    timeline: list[int] = []
    allocator, message = cuda.allocator, ""
    allocator.reset_peak()
    try:
        with tracer.watching(sample), listening(lambda _: timeline.append(allocator.allocated_bytes)):
            _answer(asked, model, tokens)
    except torch.OutOfMemoryError as error:
        message = str(error)
    holders = _holders(tracer.at_peak())
    stats = allocator.stats
    return SampleForecast(
        sample,
        tokens,
        stats.allocated_bytes.peak,
        allocator.allocated_bytes,
        stats.reserved_bytes.peak,
        tuple(timeline),
        holders,
        message,
    )


@torch.inference_mode()
def _answer(asked: Asked, model: HimapLlavaForConditionalGeneration, tokens: int) -> None:
    config = model.config
    ids = torch.full((asked.batch, asked.prompt_tokens), 1)
    ids[:, SYSTEM_TOKENS : SYSTEM_TOKENS + image_token_count(config)] = config.image_token_id
    side = config.vision_config.image_size
    inputs: dict[str, Any] = {
        "input_ids": ids.to(DEVICE),
        "attention_mask": torch.ones_like(ids).to(DEVICE),
        "pixel_values": torch.zeros(asked.batch, 3, side, side).to(DEVICE, asked.dtype),
        "logits_processor": [_Marking()],
        "min_new_tokens": tokens,
        "max_new_tokens": tokens,
        "do_sample": False,
        "use_cache": asked.use_cache and not asked.keep_attentions,
    }
    if not asked.keep_attentions:
        model.generate(**inputs)
        return
    logits: list[Tensor] = []
    hook = model.register_forward_hook(lambda _module, _inputs, output: logits.append(output.logits))
    try:
        everything = {"output_attentions": True, "output_scores": True, "return_dict_in_generate": True}
        output = model.generate(**inputs, **everything, logits_to_keep=0)
    finally:
        hook.remove()
    asked._kept[:] = [output, logits]  # only now is the last answer's let go, as one variable in a loop does


class _Marking:
    """Of the protocol of transformers' LogitsProcessor."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        mark("token")
        return scores


def _holders(alive: Sequence[Allocation]) -> tuple[Holder, ...]:
    by_line: dict[str, list[int]] = {}
    for one in alive:
        line = "the model, and what was there before" if one.line is None else str(one.line)
        by_line.setdefault(line, []).append(one.n_bytes)
    found = [Holder(sum(sizes), len(sizes), line) for line, sizes in by_line.items()]
    return tuple(sorted(found, key=lambda holder: -holder.n_bytes)[:_HOLDERS])


def _config(model: str) -> HimapLlavaConfig:
    """Of a preset, or of a folder in Hugging Face's layout: its config is enough."""
    if model in PRESETS:
        return llava_config(SHAPES[model], our_tokenizer())
    folder = Path(model)
    if not folder.is_dir():
        raise BadInput(f"the model must be one of {', '.join(PRESETS)} or a folder with a config, got {shown(model)}")
    if is_original(read_config(folder)):
        raise BadInput(f"the folder must be in Hugging Face's layout, got the original LLaVA's in {shown(model)}")
    config: HimapLlavaConfig = reading(folder, "config", lambda: HimapLlavaConfig.from_pretrained(folder))
    return config
