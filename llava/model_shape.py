"""Sizes of a model that the modes' defaults follow. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from himap import HimapLlavaConfig

_SMALL = 16  # layers; below that the paper's layers 2 and 8 make no sense


@dataclass(frozen=True)
class ModelShape:
    """`layers` of the decoder, and the tokens that one image becomes."""

    layers: int
    image_tokens: int

    @property
    def is_small(self) -> bool:
        """Whether the paper's settings don't fit."""
        return self.layers < _SMALL

    @property
    def halfway(self) -> int:
        """The layer in the middle, at least 2."""
        return max(2, self.layers // 2)


def model_shape(config: HimapLlavaConfig) -> ModelShape:
    """The shape of the model that `config` describes."""
    return ModelShape(config.text_config.num_hidden_layers, image_token_count(config))


def image_token_count(config: HimapLlavaConfig) -> int:
    """I, the number of image tokens one image becomes."""
    vision = config.vision_config
    # CLIP puts a class token first; "default" drops it, "full" keeps it.
    return int((vision.image_size // vision.patch_size) ** 2 + (config.vision_feature_select_strategy == "full"))
