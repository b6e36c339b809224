"""Parts of transformers that `himap` needs beside its public API, checked when `himap` is imported.

Private names move between versions. A missing one shall be named at once, not fail somewhere inside a forward.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
import transformers

_NAMES: dict[str, dict[str, tuple[str, ...]]] = {  # module: {name: parameters we pass by keyword}
    "transformers.cache_utils": {
        "Cache.get_seq_length": ("layer_idx",),
        "DynamicLayer.is_sliding": (),
        "DynamicCache": ("config",),
    },
    "transformers.conversion_mapping": {
        "get_checkpoint_conversion_mapping": (),
        "register_checkpoint_conversion_mapping": ("overwrite",),
    },
    "transformers.masking_utils": {
        "create_causal_mask": (
            "config",
            "inputs_embeds",
            "attention_mask",
            "past_key_values",
            "position_ids",
            "layer_idx",
        ),
    },
    "transformers.models.llama.modeling_llama": {
        "LlamaDecoderLayer": (),
        "LlamaModel._can_record_outputs": (),
        "LlamaModel._from_config": (),
        "rotate_half": (),
    },
    "transformers.models.llava.modeling_llava": {"LlavaMultiModalProjector": ()},
    "transformers.utils.generic": {"merge_with_config_defaults": ()},
    "transformers.utils.output_capturing": {"capture_outputs": ()},
}
_LAYER_ATTRIBUTES = ("self_attn", "input_layernorm")
_ATTENTION_ATTRIBUTES = ("q_proj", "k_proj", "head_dim", "scaling")


def check_transformers() -> None:
    """Raise ImportError that names everything this transformers lacks of what `himap` needs."""
    missing = [*_missing_names(), *_missing_attributes()]
    if missing:
        raise ImportError(
            f"himap does not work with transformers {transformers.__version__}, which lacks {', '.join(missing)}"
        )


def _missing_names() -> Iterator[str]:
    for module_name, names in _NAMES.items():
        for name, parameters in names.items():
            found = _find(module_name, name)
            if found is None:
                yield f"{module_name}.{name}"
            elif parameters:
                takes = inspect.signature(found).parameters
                yield from (f"{module_name}.{name}({parameter}=)" for parameter in parameters if parameter not in takes)


def _missing_attributes() -> Iterator[str]:
    """Attributes that exist on instances only: looked for on one small layer without memory."""
    layer_class = _find("transformers.models.llama.modeling_llama", "LlamaDecoderLayer")
    if layer_class is None:
        return
    config = transformers.LlamaConfig(hidden_size=8, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1)
    with torch.device("meta"):
        layer = layer_class(config, 0)
    yield from (f"LlamaDecoderLayer().{name}" for name in _LAYER_ATTRIBUTES if not hasattr(layer, name))
    attention = getattr(layer, "self_attn", None)
    yield from (f"LlamaAttention().{name}" for name in _ATTENTION_ATTRIBUTES if not hasattr(attention, name))


def _find(module_name: str, name: str) -> Any:
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError:
        return None
    for part in name.split("."):
        found = getattr(found, part, None)
    return found
