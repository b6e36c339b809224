"""FLOPs of a prefill, and their share of the baseline's: by formula, and counted by torch's FlopCounterMode.

And the KV cache that a prefill leaves, by the same plan of tokens in each layer.

Counted are the matrix products in the LLaMA decoder's layers, 2 FLOPs for each multiplication with its addition: no
embedding, vision tower, projector or `lm_head`. Attention is N x N; neither way halves it for the causal mask.

`config` is a LlamaConfig (of a LLaVA its `text_config`), and its flags (`himap.settings.FLAGS`) say which mode is on.
`python -m himap.flops` prints the table of docs/flops.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from numbers import Integral
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig

from himap.decoder import Himap_LlamaModel
from himap.layout import image_rows
from himap.settings import SWITCHES, CustomSettings, Settings, active_settings

SHAPES = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13B": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}
PAPER_FLAGS = {
    "use_hmap_v": True,
    "hmap_v_attn_txt_layer": 2,
    "hmap_v_attn_txt_rank": 288,
    "hmap_v_attn_img_layer": 8,
    "hmap_v_attn_img_rank": 72,
}
PUBLISHED = {"7B": "24 %", "13B": "23 %"}  # "FLOPs Ratio" in the README of ustc-hyin/HiMAP


def prefill_flops(config: LlamaConfig, *, sys: int, img: int, text: int, selection: bool = True) -> int:
    """FLOPs of one prompt of `sys`, `img` and `text` tokens, by formula; with what selecting tokens takes, or without.

    Raises ValueError for token counts that are no whole numbers or below 0, for a prompt without tokens, for flags that
    break a rule, and for a prompt that the mode refuses.
    """
    settings, images = _plan(config, sys, img, text)
    layers = sum(_layer_flops(config, sys + image + text) for image in images)
    return layers + (_selection_flops(config, settings, sys, img, text) if selection else 0)


def counted_flops(config: LlamaConfig, *, sys: int, img: int, text: int, selection: bool = True) -> int:
    """The same, counted on the meta device, which takes no memory: in a forward of `Himap_LlamaModel`.

    Without `selection`: in stock layers, of the lengths the mode gives them. Raises ValueError as `prefill_flops` does.
    """
    settings, images = _plan(config, sys, img, text)
    if settings is None or not selection:
        return _counted_layers(config, [sys + image + text for image in images])
    config = deepcopy(config)
    # A mask on the meta device could not be read; nor could the farthest points (neither method takes a product).
    config.hmap_v_sys_length = config.fast_v_sys_length = config.custom_sys_length = sys
    config.hmap_v_img_length = config.fast_v_image_token_length = config.custom_image_token_length = img
    config.custom_selection_method = "tome"
    return _counted_on_meta(config, sys + img + text)


def fastv_flops(config: LlamaConfig, *, img: int) -> int:
    """FLOPs by FastV's formula, 4nd^2 + 2n^2d + 2ndm a layer, where n counts the image's tokens and no others.

    A multiplication with its addition is 1, and the MLP has two matrices (LLaMA's has three). Source: FastV (arXiv
    2403.06764). Raises ValueError as `prefill_flops` does.
    """
    d, m = config.hidden_size, config.intermediate_size
    return sum(4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m for n in _image_alone(config, img))


def rough_flops(config: LlamaConfig, *, sys: int, img: int, text: int) -> int:
    """n^2 + n a layer, where n counts its tokens: an estimate in which a layer's attention and MLP weigh alike.

    It is for comparison with results that were published so (`flops_info`); it makes savings look larger than they are.
    Raises ValueError as `prefill_flops` does.
    """
    return sum(n**2 + n for n in (sys + image + text for image in _plan(config, sys, img, text)[1]))


def flops_ratio(config: LlamaConfig, *, flops: Callable[..., int] = prefill_flops, **arguments: Any) -> float:
    """FLOPs with the mode that is on, divided by those with every mode off: `flops` is one of the functions above.

    `arguments` are those of `flops`. Raises ValueError as it does.
    """
    return flops(config, **arguments) / flops(_dense(config), **arguments)


def cache_bytes(config: LlamaConfig, dtype: torch.dtype, *, sys: int, img: int, text: int) -> int:
    """Bytes of keys and values in `dtype` after a prompt, in all layers. Raises ValueError as `prefill_flops` does."""
    _, images = _plan(config, sys, img, text)
    token_bytes = 2 * config.num_key_value_heads * config.head_dim * dtype.itemsize  # in one layer
    return int(sum(sys + image + text for image in images) * token_bytes)


def flops_of(model: nn.Module, **inputs: Any) -> int:
    """FLOPs that FlopCounterMode counts in `model(**inputs)`; SDPA on the CPU, which torch 2.13 leaves out, added."""
    cpu_sdpa = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_flops}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=cpu_sdpa) as counter:
        model(**inputs)
    return int(counter.get_total_flops())


def table() -> str:
    """FLOPs ratios of the paper's setting in every way of counting, as Markdown."""
    rows = [("model", "system + image + text", "formula", "FlopCounterMode", "published"), ("---",) * 5]
    for name, shape in SHAPES.items():
        config = LlamaConfig(**shape, **PAPER_FLAGS)
        for text in (30, 60, 120):
            formula, counted = (
                flops_ratio(config, flops=flops, sys=35, img=576, text=text) for flops in (prefill_flops, counted_flops)
            )
            rows.append((name, f"35 + 576 + {text}", _percent(formula), _percent(counted), PUBLISHED[name]))
        formula, counted = (flops_ratio(config, flops=flops, img=576) for flops in (fastv_flops, _counted_image))
        image_only = "576, image only (FastV's formula)"
        rows.append((name, image_only, _percent(formula), _percent(counted), PUBLISHED[name]))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _plan(config: LlamaConfig, sys: int, img: int, text: int) -> tuple[Settings | None, list[int]]:
    """Settings of the mode that is on, None where it has nothing to do; image tokens in each layer."""
    for name, tokens in (("sys", sys), ("img", img), ("text", text)):
        if isinstance(tokens, bool) or not isinstance(tokens, Integral) or tokens < 0:
            raise ValueError(f"{name} must be a whole number of at least 0, got {tokens!r}")
    if not (width := sys + img + text):
        raise ValueError("a prompt must have at least one token, got none")
    settings, images = active_settings(config), [img] * config.num_hidden_layers
    if settings is None:
        return None, images
    if isinstance(settings, CustomSettings):
        stages = [(settings.agg_layer, settings.kept if settings.drop else img)]
    else:
        stages = [(stage.layer, stage.rank) for stage in settings.stages]
    image_mask = torch.zeros(1, width, dtype=torch.bool)
    image_mask[:, sys : sys + img] = True
    if stages[0][0] >= len(images) or image_rows(settings, (0,), width, image_mask) is None:
        return None, images
    for layer, kept in stages:
        images[layer:] = [kept] * len(images[layer:])
    return settings, images


def _layer_flops(config: LlamaConfig, n: int) -> int:
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    projections = 2 * config.hidden_size * config.head_dim * (2 * heads + 2 * key_heads)
    mlp = 2 * config.hidden_size * config.intermediate_size * 3
    return int(n * (projections + mlp) + 4 * n**2 * heads * config.head_dim)


def _selection_flops(config: LlamaConfig, settings: Settings | None, sys: int, img: int, text: int) -> int:
    if settings is None:
        return 0
    if isinstance(settings, CustomSettings):  # similarities of aggregates to image tokens, and their weighted sums
        return int(4 * settings.kept * img * config.hidden_size)
    # Each stage multiplies its rows' queries by the keys they see; both are the layer's own.
    products = 0
    for stage in settings.stages:
        if stage.layer < config.num_hidden_layers and stage.rank < img:  # else nothing is scored
            width = sys + img + text
            rows, seen = {"txt": (text, width), "img": (img, sys + img), "last": (1, width)}[stage.attention_from]
            products += rows * seen
            img = stage.rank
    return int(2 * products * config.num_attention_heads * config.head_dim)


def _image_alone(config: LlamaConfig, img: int) -> list[int]:
    settings = active_settings(config)
    sys = settings.lengths.sys or 0 if settings else 0
    return _plan(config, sys, img, text=1)[1]  # HiMAP refuses an image without text


def _counted_image(config: LlamaConfig, *, img: int) -> int:
    return _counted_layers(config, _image_alone(config, img))


def _counted_layers(config: LlamaConfig, lengths: list[int]) -> int:
    one_layer = _dense(config)
    one_layer.num_hidden_layers = 1
    return sum(layers * _counted_on_meta(one_layer, tokens) for tokens, layers in Counter(lengths).items())


def _counted_on_meta(config: LlamaConfig, tokens: int) -> int:
    with torch.device("meta"):
        model = Himap_LlamaModel._from_config(config, attn_implementation="sdpa")
        embeds = torch.empty(1, tokens, config.hidden_size)
    # With a cache: without one transformers looks into the positions for packed sequences.
    return flops_of(model, inputs_embeds=embeds, use_cache=True)


def _dense(config: LlamaConfig) -> LlamaConfig:
    dense = deepcopy(config)
    for switch in SWITCHES:
        setattr(dense, switch, False)
    return dense


def _sdpa_flops(query: Any, key: Any, *_: Any, **__: Any) -> int:
    """FLOPs of shapes (batch, heads, tokens, head size)."""
    batch, heads, queries, size = query
    return int(4 * batch * heads * queries * key[2] * size)


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.1f} %"


if __name__ == "__main__":
    print(table(), end="")
