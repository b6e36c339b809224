"""HiMAP visual-token pruning (CVPR 2025) and custom token selection inside transformers' LLaMA decoder."""

from himap.decoder import Himap_LlamaModel, HimapLlamaForCausalLM, Kept
from himap.multimodal import HimapLlavaConfig, HimapLlavaForConditionalGeneration, HimapLlavaModel

__all__ = [
    "HimapLlamaForCausalLM",
    "HimapLlavaConfig",
    "HimapLlavaForConditionalGeneration",
    "HimapLlavaModel",
    "Himap_LlamaModel",
    "Kept",
]
