"""Small models, the golden prompts, and ways to look inside a forward."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from himap import HimapLlavaConfig, HimapLlavaForConditionalGeneration

GOLDEN = Path(__file__).parent / "golden"
LOGITS = {"atol": 5e-4, "rtol": 1e-4}
SCORES = {"atol": 1e-5, "rtol": 0.0}
LAYERS = 6  # of the golden model

TEXT = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # or every token would be answered much alike
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 16,
}
IMAGE_TOKEN = 63
IMAGE_TOKENS = 16  # (16 / 4) squared


@cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def golden_llama(model_class: type[Any]) -> Any:
    """`model_class`, which takes a LlamaConfig, with the golden weights."""
    config = LlamaConfig(**json.loads((GOLDEN / "model_mha_config.json").read_text()), attn_implementation="sdpa")
    config.eos_token_id = None  # the vectors were made with it off
    model = model_class(config).eval()
    model.load_state_dict(load_file(GOLDEN / "model_mha.safetensors"))
    return model


@dataclass(frozen=True)
class Prompt:
    """[system | image | text], embedded."""

    embeds: Tensor  # (1, sys + img + text, hidden)
    sys: int
    img: int

    @classmethod
    def golden(cls, name: str) -> Prompt:
        vectors = golden(f"input_{name}")
        return cls(torch.from_numpy(vectors["inputs_embeds"]), int(vectors["S"]), int(vectors["I"]))

    @property
    def length(self) -> int:
        return self.embeds.shape[1]

    @property
    def image_mask(self) -> Tensor:
        mask = torch.zeros(1, self.length, dtype=torch.bool)
        mask[:, self.sys : self.sys + self.img] = True
        return mask


def himap_on(config: Any, prompt: Prompt | None = None, **flags: Any) -> None:
    """HiMAP on: 12 of the image tokens before layer 2, 3 before layer 4; `flags` without their prefix."""
    defaults = {"attn_txt_layer": 2, "attn_txt_rank": 12, "attn_img_layer": 4, "attn_img_rank": 3}
    if prompt is not None:
        defaults |= {"sys_length": prompt.sys, "img_length": prompt.img}
    config.use_hmap_v = True
    for name, value in (defaults | flags).items():
        setattr(config, f"hmap_v_{name}", value)


def fastv_on(config: Any, prompt: Prompt | None = None, **flags: Any) -> None:
    """FastV on: 12 of the image tokens before layer 2; `flags` without their prefix."""
    defaults = {"agg_layer": 2, "attention_rank": 12}
    if prompt is not None:
        defaults |= {"sys_length": prompt.sys, "image_token_length": prompt.img}
    config.use_fast_v = True
    for name, value in (defaults | flags).items():
        setattr(config, f"fast_v_{name}", value)


def custom_on(config: Any, prompt: Prompt | None = None, **flags: Any) -> None:
    """Custom selection on: 8 tokens at layer 2 by ToMe, which draws nothing; `flags` without their prefix."""
    defaults: dict[str, Any] = {"kept_tokens": 8, "agg_layer": 2, "selection_method": "tome"}
    if prompt is not None:
        defaults |= {"sys_length": prompt.sys, "image_token_length": prompt.img}
    config.use_custom_selection = True
    for name, value in (defaults | flags).items():
        setattr(config, f"custom_{name}", value)


@dataclass
class Watched:
    """Inputs of each decoder layer."""

    hidden: list[Tensor] = field(default_factory=list)
    cosines: list[Tensor] = field(default_factory=list)
    masks: list[Tensor | None] = field(default_factory=list)
    position_ids: list[Tensor | None] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        return [hidden.shape[1] for hidden in self.hidden]


@contextmanager
def watched_layers(decoder: Any) -> Iterator[Watched]:
    watched = Watched()

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        watched.hidden.append(args[0])
        watched.cosines.append(kwargs["position_embeddings"][0])
        watched.masks.append(kwargs["attention_mask"])
        watched.position_ids.append(kwargs["position_ids"])

    handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in decoder.layers]
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()


def llava_config(**flags: Any) -> HimapLlavaConfig:
    return HimapLlavaConfig(vision_config=dict(VISION), text_config=dict(TEXT), image_token_index=IMAGE_TOKEN, **flags)


def random_llava(**flags: Any) -> HimapLlavaForConditionalGeneration:
    torch.manual_seed(0)
    return HimapLlavaForConditionalGeneration(llava_config(**flags)).eval()


def plain_llava(like: HimapLlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """transformers' own LLaVA with the same weights."""
    config = LlavaConfig(vision_config=dict(VISION), text_config=dict(TEXT), image_token_index=IMAGE_TOKEN)
    plain = LlavaForConditionalGeneration(config).eval()
    plain.load_state_dict(like.state_dict())
    return plain


def llava_inputs(*, images: int = 1) -> dict[str, Tensor]:
    """A prompt of 3 system tokens, an image (or none), and 6 tokens of text."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, IMAGE_TOKEN, (9,), generator=generator).tolist()
    ids = text[:3] + [IMAGE_TOKEN] * (IMAGE_TOKENS * images) + text[3:]
    inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
    if images:
        inputs["pixel_values"] = torch.randn(images, 3, 16, 16, generator=generator)
    return inputs
