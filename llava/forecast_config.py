"""The config, tokenizer and prompts of a model whose memory is forecast; no weights are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from himap import HimapLlavaConfig
from llava.checkpoint import empty_model, read_config, reading
from llava.errors import BadInput, shown
from llava.folders import described
from llava.hf_layout import check_tokenizer_files, hf_config, hf_tokenizer
from llava.model_shape import image_token_count
from llava.original import is_original, original_config, original_tokenizer
from llava.presets import PRESETS
from llava.shapes import SHAPES, llava_config, our_tokenizer

SYSTEM_TOKENS = 35  # before the image, in LLaVA-1.5's prompt
_QUESTION_TOKENS = 16  # after the image, in a short question
_MAX_PARAMETERS = 2**40
_ROPES = {"default", *ROPE_INIT_FUNCTIONS} - {"longrope"}
_POSITIVE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")


def config_of(model: str) -> HimapLlavaConfig:
    """The config of a preset, or of a folder in either layout. Raises BadInput where no model can be made of it."""
    if model in PRESETS:
        return llava_config(SHAPES[model], our_tokenizer())
    folder = described(model)
    if folder is None:
        raise BadInput(f"the model must be one of {', '.join(PRESETS)} or a folder with a config, got {shown(model)}")
    raw = read_config(folder)
    if raw.get("quantization_config") is not None:
        raise BadInput(
            "a forecast's config must have no quantization_config, as quantised kernels are not modelled, got one in "
            f"{shown(str(folder))}"
        )
    config = original_config(folder, raw) if is_original(raw) else hf_config(folder)
    _check_values(config, folder)
    _check_model(config, folder)
    return config


def tokenizer_of(model: str) -> Any:
    """The tokenizer of a preset or folder. Raises BadInput where it has none."""
    if model in PRESETS:
        return our_tokenizer()
    folder = described(model) or Path(model)
    raw = read_config(folder)
    if not is_original(raw):
        return hf_tokenizer(folder, hf_config(folder))
    check_tokenizer_files(folder)
    return original_tokenizer(folder, raw)


def default_prompt_tokens(config: HimapLlavaConfig) -> int:
    """Tokens of a short question's prompt: the system's words, the image, and 16 tokens of text."""
    return SYSTEM_TOKENS + image_token_count(config) + _QUESTION_TOKENS


def check_prompt_tokens(config: HimapLlavaConfig, tokens: int) -> None:
    """Raise BadInput for a prompt that has no room for the image."""
    least = SYSTEM_TOKENS + image_token_count(config) + 1
    if tokens < least:
        raise BadInput(f"the prompt must have at least {least} tokens, its image's included, got {tokens}")


@dataclass(frozen=True)
class _Rule:
    """The rule for the config's value `name`, and whether its `value` keeps it."""

    name: str
    is_kept: bool
    rule: str
    value: object


def _check_values(config: HimapLlavaConfig, folder: Path) -> None:
    """Raise BadInput for a config that can be read, but describes no model that can answer."""
    for rules in (_size_rules, _vision_rules, _token_rules, _function_rules):
        for rule in rules(config):
            if not rule.is_kept:
                raise BadInput(
                    f"the config's {rule.name} must {rule.rule}, got {shown(rule.value)} in {shown(str(folder))}"
                )


def _size_rules(config: HimapLlavaConfig) -> Iterator[_Rule]:
    for part, names in (("text_config", (*_POSITIVE, "head_dim")), ("vision_config", (*_POSITIVE, "patch_size"))):
        for name in names:
            value = getattr(getattr(config, part), name)
            yield _Rule(f"{part}.{name}", value is None or value > 0, "be more than 0", value)
    heads, kv_heads = config.text_config.num_attention_heads, config.text_config.num_key_value_heads
    divides = kv_heads > 0 and heads % kv_heads == 0
    yield _Rule("num_key_value_heads", divides, f"divide its {heads} heads", kv_heads)


def _vision_rules(config: HimapLlavaConfig) -> Iterator[_Rule]:
    vision, layer = config.vision_config, config.vision_feature_layer
    yield _Rule(
        "image_size",
        vision.image_size >= vision.patch_size,
        f"hold a patch of {vision.patch_size}",
        vision.image_size,
    )
    yield _Rule("num_channels", vision.num_channels == 3, "be 3, as images have", vision.num_channels)
    layers, deepest = layer if isinstance(layer, list) else [layer], vision.num_hidden_layers
    exists = bool(layers) and all(-deepest - 1 <= each <= deepest for each in layers)
    yield _Rule("vision_feature_layer", exists, f"be in {-deepest - 1}..{deepest}", layer)


def _token_rules(config: HimapLlavaConfig) -> Iterator[_Rule]:
    size, image_id, pad_id = config.text_config.vocab_size, config.image_token_id, config.text_config.pad_token_id
    yield _Rule("image_token_index", 0 <= image_id < size, f"be in 0..{size - 1}, the vocabulary", image_id)
    known = pad_id is None or -size <= pad_id < size
    yield _Rule("pad_token_id", known, f"be below {size}, the vocabulary", pad_id)


def _function_rules(config: HimapLlavaConfig) -> Iterator[_Rule]:
    activations = {config.projector_hidden_act, config.text_config.hidden_act, config.vision_config.hidden_act}
    unknown = activations - ACT2FN.keys()
    yield _Rule("activations", not unknown, "be those of transformers", ", ".join(map(str, unknown)))
    # longrope's first answer makes frequencies that stay with the model, and no later answer frees them.
    rope = (getattr(config.text_config, "rope_parameters", None) or {}).get("rope_type", "default")
    yield _Rule("rope_type", rope in _ROPES, f"be one of {', '.join(sorted(_ROPES))}", rope)


def _check_model(config: HimapLlavaConfig, folder: Path) -> None:
    """Raise BadInput where transformers makes no model of the config, or one that is beyond every card."""
    model = reading(folder, "config.json", lambda: empty_model(config, torch.device("meta")))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if parameters > _MAX_PARAMETERS:
        raise BadInput(
            f"the config's model must have at most {_MAX_PARAMETERS:,} parameters, got {parameters:,} in "
            f"{shown(str(folder))}"
        )
