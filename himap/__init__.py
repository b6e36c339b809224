"""HiMAP visual-token pruning (CVPR 2025) and custom token selection inside transformers' LLaMA decoder."""

from importlib.util import find_spec

if find_spec("transformers") is None:
    raise ImportError("himap needs transformers: pip install 'himap-vram[llava]'")

from himap.transformers_api import check_transformers

check_transformers()  # before the imports below, which would stop at the first name that is missing

from himap.decoder import Himap_LlamaModel, HimapLlamaForCausalLM  # noqa: E402
from himap.frozen import Kept  # noqa: E402
from himap.multimodal import HimapLlavaConfig, HimapLlavaForConditionalGeneration, HimapLlavaModel  # noqa: E402

__all__ = [
    "HimapLlamaForCausalLM",
    "HimapLlavaConfig",
    "HimapLlavaForConditionalGeneration",
    "HimapLlavaModel",
    "Himap_LlamaModel",
    "Kept",
]
