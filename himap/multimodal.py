"""LLaVA with HiMAP inside: transformers' LLaVA, its decoder exchanged for `Himap_LlamaModel`."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaPreTrainedModel,
)
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from himap.decoder import Himap_LlamaModel
from himap.generation import OneFirstIndexPerGenerate
from himap.settings import FLAGS, any_mode_on


class HimapLlavaConfig(LlavaConfig):  # type: ignore[misc]
    """`LlavaConfig` whose flags of every mode are those of `text_config`, where the decoder reads them."""


def _forwarded(name: str) -> property:
    def read(config: HimapLlavaConfig) -> Any:
        return getattr(config.text_config, name, None)

    def write(config: HimapLlavaConfig, value: Any) -> None:
        setattr(config.text_config, name, value)

    return property(read, write, doc=f"`text_config.{name}`; None where it was never set.")


for _flag in FLAGS:
    setattr(HimapLlavaConfig, _flag, _forwarded(_flag))


def _checked(config: Any) -> HimapLlavaConfig:
    if not isinstance(config, HimapLlavaConfig):  # flags set on a plain one would never reach the decoder
        raise ValueError(f"the config must be a HimapLlavaConfig, got {type(config).__name__}")
    if not isinstance(config.text_config, LlamaConfig):
        raise ValueError(f"the decoder must be a LLaMA, got model type {config.text_config.model_type!r}")
    return config


def _convert_keys_like(ours: str, theirs: str) -> None:
    """Let class `ours` read and write checkpoints with the key names that transformers' own `theirs` does."""
    mapping = get_checkpoint_conversion_mapping(theirs)
    if mapping is None:
        raise ImportError(f"himap needs transformers' checkpoint conversion {theirs!r}, which this version lacks")
    register_checkpoint_conversion_mapping(ours, mapping, overwrite=True)


# transformers converts names for its own classes and for those registered. Here, not in from_pretrained: what a model
# writes must not depend on whether another was read before.
_convert_keys_like("HimapLlavaForConditionalGeneration", "llava")
_convert_keys_like("HimapLlavaModel", "LlavaModel")


class HimapLlavaModel(LlavaModel):  # type: ignore[misc]
    """`LlavaModel` that tells its decoder where the image tokens stand while a mode is on."""

    config_class = HimapLlavaConfig
    language_model: Himap_LlamaModel

    def __init__(self, config: HimapLlavaConfig) -> None:
        # Not LlavaModel's: it would first build a plain decoder, 13 GB of it at 7B.
        LlavaPreTrainedModel.__init__(self, _checked(config))
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = LlavaMultiModalProjector(config)
        # _from_config as AutoModel calls it: it alone builds in the dtype that text_config names.
        self.language_model = Himap_LlamaModel._from_config(config.text_config)
        self.post_init()

    def reset_hmapv(self) -> None:
        """Drop what the last HiMAP run left behind."""
        self.language_model.reset_hmapv()

    def reset_custom_selection(self) -> None:
        """Drop what the last custom selection left behind."""
        self.language_model.reset_custom_selection()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Any:
        """`LlavaModel.forward`; with a mode on, `image_mask` is computed from `input_ids` and handed on."""
        config = self.config
        if input_ids is not None and any_mode_on(config):
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            brings_image = pixel_values is not None or bool(kwargs.get("mm_encoder_outputs"))
            if not seen or brings_image:
                kwargs.setdefault("image_mask", self._image_mask(input_ids, pixel_values))
            elif input_ids.shape[1] > 1:
                # Without pixels an image token is a word like any other: models that were never trained do write it.
                # For one new token not even this mask is made, or a GPU would wait at each.
                kwargs.setdefault("image_mask", torch.zeros_like(input_ids, dtype=torch.bool))
        return super().forward(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )

    def _image_mask(self, input_ids: Tensor, pixel_values: Tensor | None) -> Tensor:
        """(batch, tokens) bool, true at image tokens. Raises ValueError where a prompt has more than one image."""
        image_mask = input_ids == self.config.image_token_id
        if pixel_values is not None:
            prompts = int(image_mask.any(dim=1).sum())
            if pixel_values.shape[0] > prompts:
                raise ValueError(
                    f"a prompt must have one image, got {pixel_values.shape[0]} for {prompts} with image tokens"
                )
        return cast(Tensor, image_mask)


class HimapLlavaForConditionalGeneration(OneFirstIndexPerGenerate, LlavaForConditionalGeneration):  # type: ignore[misc]
    """`LlavaForConditionalGeneration` with HiMAP and custom selection. With both off it is plain LLaVA, bit for bit.

    `from_pretrained` raises ValueError, naming the keys, where a checkpoint has keys too few, too many or misshapen.
    """

    config_class = HimapLlavaConfig
    model: HimapLlavaModel

    def __init__(self, config: HimapLlavaConfig) -> None:
        # Not LlavaForConditionalGeneration's, for the same reason.
        LlavaPreTrainedModel.__init__(self, _checked(config))
        self.model = HimapLlavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """`PreTrainedModel.from_pretrained`, but an incomplete or foreign checkpoint is a ValueError, not a print."""
        # Else misshapen keys would end in a RuntimeError that names none of them.
        kwargs["ignore_mismatched_sizes"] = True
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        problems = {
            "missing": info["missing_keys"],
            "unexpected": info["unexpected_keys"],
            "misshapen": [key for key, *_ in info["mismatched_keys"]],
        }
        if any(problems.values()):
            listed = "; ".join(f"{what} {', '.join(sorted(keys))}" for what, keys in problems.items() if keys)
            raise ValueError(f"the checkpoint must hold exactly the model's keys, got {listed}")
        return (model, info) if output_loading_info else model
