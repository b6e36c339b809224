"""HiMAP pruning and custom selection inside transformers' LLaMA decoder: one thin adapter, no algorithm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import rotate_half
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from himap.scoring import TILE_BYTES, column_scores
from himap.selection import aggregate, farthest_points, most_similar, top_tokens
from himap.settings import CustomSettings, HimapSettings, Lengths, Settings, active_settings

Rope = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Kept:
    """Image tokens the last forward kept, int64 indices relative to the image; None where that choice was not made.

    `txt` and `img` ascend (HiMAP's two stages, both counted on the whole image); `selected` is in selection order.
    """

    txt: Tensor | None = None
    img: Tensor | None = None
    selected: Tensor | None = None


class _FirstIndex:
    """The first farthest point, drawn from torch's global generator at most once per life."""

    def __init__(self) -> None:
        self._index: int | None = None

    def draw(self, count: int) -> int:
        if self._index is None:
            self._index = int(torch.randint(0, count, (1,)).item())
        return self._index


class Himap_LlamaModel(LlamaModel):  # type: ignore[misc]  # the published name
    """LLaMA decoder that can prune image tokens. With every mode off it returns `super().forward(...)`.

    Flags are read from `self.config` (see `himap.settings.FLAGS`) in every forward. `forward` takes one more argument,
    `image_mask` (batch, tokens) bool, true at image tokens; without it the configured lengths are used. A prompt with
    no image token takes the dense path.

    `kept` tells what the last forward kept; None after one that chose nothing.

    Raises ValueError for flags that break a rule, lengths that disagree with the mask, image tokens that are not
    contiguous or not followed by text (HiMAP), batches, padding, and a cache while tokens are removed.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.kept: Kept | None = None
        self._first_index: _FirstIndex | None = None

    def reset_hmapv(self) -> None:
        """Drop what the last HiMAP run left behind. The flags stay as the config has them."""
        self.kept = None

    def reset_custom_selection(self) -> None:
        """Drop what the last custom selection left behind, the drawn first index included."""
        self.kept = None
        self._first_index = None

    @contextmanager
    def one_first_index(self) -> Iterator[None]:
        """Inside, farthest-point selection starts from one first index, drawn once; outside, one per forward."""
        outer, self._first_index = self._first_index, _FirstIndex()
        try:
            yield
        finally:
            self._first_index = outer

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        image_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """LlamaModel.forward, with image tokens pruned or aggregated where a mode is on. See the class."""
        inputs: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "inputs_embeds": inputs_embeds,
            "use_cache": use_cache,
            **kwargs,
        }
        self.kept = None  # whatever comes, it is not this forward's
        settings = active_settings(self.config)
        if settings is None:
            return cast(BaseModelOutputWithPast, super().forward(**inputs))
        tokens = inputs_embeds if inputs_embeds is not None else input_ids
        image = None if tokens is None else _image_span(settings, self.config, tokens, past_key_values, image_mask)
        if image is None:
            return cast(BaseModelOutputWithPast, super().forward(**inputs))
        return cast(BaseModelOutputWithPast, self._selective_forward(settings=settings, image=image, **inputs))

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def _selective_forward(
        self,
        settings: Settings,
        image: range,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        shortens = isinstance(settings, HimapSettings) or settings.drop
        if shortens and (use_cache or past_key_values is not None):
            came = "use_cache=True" if past_key_values is None else type(past_key_values).__name__
            raise ValueError(f"removing image tokens works without a KV cache only: pass use_cache=False, got {came}")
        if hidden.shape[0] != 1:
            raise ValueError(f"pruning takes one question at a time, got a batch of {hidden.shape[0]}")
        if attention_mask is not None and not bool(attention_mask.to(torch.bool).all()):
            raise ValueError("pruning takes no padding: every entry of attention_mask must be 1")
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
        rope: Rope = self.rotary_emb(hidden, position_ids=position_ids)
        run = _Run(self, settings, image, hidden, rope)
        for layer_index, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            run.before_layer(layer_index)
            run.hidden = layer(
                run.hidden,
                attention_mask=run.causal_mask(past_key_values),
                position_embeddings=run.rope,
                # Never the gapped positions: transformers would read the gaps as packed sequences.
                position_ids=None,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        self.kept = run.kept
        return BaseModelOutputWithPast(last_hidden_state=self.norm(run.hidden), past_key_values=past_key_values)


class _Run:
    """One forward: what moves from layer to layer. `hidden` is (1, tokens, E); `rope` holds the original positions."""

    def __init__(self, model: Himap_LlamaModel, settings: Settings, image: range, hidden: Tensor, rope: Rope) -> None:
        self.model, self.settings, self.image, self.hidden, self.rope = model, settings, image, hidden, rope
        self.kept = Kept()
        self._scores = torch.empty(0)
        self._mask: tuple[int, Tensor | None] | None = None

    def before_layer(self, layer_index: int) -> None:
        """Prune or aggregate the input of layer `layer_index` if the settings say so."""
        settings = self.settings
        if isinstance(settings, CustomSettings):
            if layer_index == settings.agg_layer:
                self._aggregate(settings)
            return
        if layer_index == settings.txt_layer:
            chosen = self._prune(settings.txt_rank)
            self.kept = Kept(txt=chosen)
        elif layer_index == settings.img_layer and settings.img_rank is not None and self.kept.txt is not None:
            chosen = self._prune(settings.img_rank)
            self.kept = Kept(txt=self.kept.txt, img=self.kept.txt[chosen])
        # After the pruning: with adjacent stages the image is scored in the very layer the text stage prunes.
        if layer_index + 1 == settings.txt_layer:
            self._scores = self._score(layer_index, rows=range(self.image.stop, self.hidden.shape[1]))
        elif layer_index + 1 == settings.img_layer and settings.img_layer < self.model.config.num_hidden_layers:
            self._scores = self._score(layer_index, rows=self.image)

    def causal_mask(self, past_key_values: Any) -> Tensor | None:
        """The mask for the present length; None where the attention kernel needs none."""
        length = self.hidden.shape[1]
        if self._mask is None or self._mask[0] != length:
            mask = create_causal_mask(
                config=self.model.config,
                inputs_embeds=self.hidden,
                attention_mask=None,
                past_key_values=past_key_values,
                position_ids=None,
            )
            self._mask = (length, cast("Tensor | None", mask))
        return self._mask[1]

    def _prune(self, rank: int) -> Tensor:
        chosen = top_tokens(self._scores, rank)
        self._drop_others(chosen)
        return chosen

    def _score(self, layer_index: int, rows: range) -> Tensor:
        """Scores (image tokens,) of the image by `rows`, in the attention that layer `layer_index` is about to do."""
        if not rows or not self.image:
            return torch.zeros(len(self.image), device=self.hidden.device)
        layer = self.model.layers[layer_index]
        attention = layer.self_attn
        normed = layer.input_layernorm(self.hidden)
        heads = (-1, attention.head_dim)
        query = attention.q_proj(normed[0, rows.start : rows.stop]).unflatten(-1, heads).transpose(0, 1)
        key = attention.k_proj(normed[0]).unflatten(-1, heads).transpose(0, 1)
        cos, sin = self.rope[0][0], self.rope[1][0]
        here = slice(rows.start, rows.stop)
        return column_scores(
            query * cos[here] + rotate_half(query) * sin[here],
            key * cos + rotate_half(key) * sin,
            rows=rows,
            columns=self.image,
            scaling=attention.scaling,
            # No more than the layer's own MLP will take: scoring is not what a short prompt's peak is made of.
            tile_bytes=min(TILE_BYTES, 2 * normed.shape[1] * self.model.config.intermediate_size * normed.itemsize),
        )

    def _drop_others(self, chosen: Tensor) -> None:
        """Keep all text and the image tokens `chosen` (ascending, relative to the image). Positions stay original."""
        keep = torch.cat(
            [
                torch.arange(self.image.start, device=chosen.device),
                chosen + self.image.start,
                torch.arange(self.image.stop, self.hidden.shape[1], device=chosen.device),
            ]
        )
        self.image = range(self.image.start, self.image.start + chosen.shape[0])
        self.hidden = self.hidden[:, keep]
        self.rope = (self.rope[0][:, keep], self.rope[1][:, keep])

    def _aggregate(self, settings: CustomSettings) -> None:
        tokens = self.hidden[0, self.image.start : self.image.stop]
        if settings.method == "tome":
            selected = most_similar(tokens, settings.kept)
        else:
            first = settings.first_index
            if first is None:
                first = (self.model._first_index or _FirstIndex()).draw(len(self.image))
            selected = farthest_points(tokens, settings.kept, first)
        merged = aggregate(tokens[selected], tokens, settings.temperature).to(self.hidden.dtype)
        hidden = self.hidden.clone()  # the caller may own the embeddings
        hidden[0, self.image.start : self.image.stop] = 0
        hidden[0, self.image.start : self.image.start + settings.kept] = merged
        self.hidden = hidden
        if settings.drop:
            self._drop_others(torch.arange(settings.kept, device=hidden.device))
        self.kept = Kept(selected=selected)


def _image_span(
    settings: Settings, config: LlamaConfig, tokens: Tensor, past_key_values: Any, image_mask: Tensor | None
) -> range | None:
    """Where the image stands in `tokens` (batch, tokens[, E]); None where the mode has nothing to do (dense path)."""
    first_layer = settings.txt_layer if isinstance(settings, HimapSettings) else settings.agg_layer
    if first_layer >= config.num_hidden_layers:
        return None
    # After a prefill with a cache the image is in the cache already: what follows it needs no selection.
    if isinstance(settings, CustomSettings) and past_key_values is not None and past_key_values.get_seq_length() > 0:
        return None
    if image_mask is None:
        image = _configured_span(settings.lengths)
    elif image_mask.shape != tokens.shape[:2]:
        raise ValueError(f"image_mask must have the tokens' shape {[*tokens.shape[:2]]}, got {[*image_mask.shape]}")
    elif not image_mask.any():
        return None
    else:
        image = _masked_span(image_mask, settings.lengths)
    length = tokens.shape[1]
    if isinstance(settings, CustomSettings):
        if settings.kept >= len(image) or length < image.stop:
            return None
    elif length <= image.stop:
        raise ValueError(f"HiMAP needs text after the image: got {length} tokens, the image ends at {image.stop}")
    settings.check_image(len(image))
    return image


def _configured_span(lengths: Lengths) -> range:
    if lengths.sys is None or lengths.img is None:
        raise ValueError(
            "without an image mask the system and image lengths must both be configured, "
            f"got {lengths.sys} and {lengths.img}"
        )
    return range(lengths.sys, lengths.sys + lengths.img)


def _masked_span(image_mask: Tensor, lengths: Lengths) -> range:
    """The span of True in `image_mask` (1, tokens), which has some, checked against the configured lengths."""
    if image_mask.shape[0] != 1:
        raise ValueError(f"pruning takes one question at a time, got a batch of {image_mask.shape[0]}")
    found = image_mask[0].nonzero().squeeze(1)
    start, count, last = int(found[0]), found.numel(), int(found[-1])
    if last != start + count - 1:
        raise ValueError(f"the image tokens must be contiguous, got {count} of them between {start} and {last}")
    for name, configured, masked in (("system", lengths.sys, start), ("image", lengths.img, count)):
        if configured is not None and configured != masked:
            raise ValueError(f"the configured {name} length is {configured}, the prompt's is {masked}")
    return range(start, start + count)


class OneFirstIndexPerGenerate:
    """Mixin for models with a `Himap_LlamaModel` inside: `generate` draws custom selection's first index once."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """`GenerationMixin.generate`; with custom selection on, one first index for all of its forwards."""
        decoder: Himap_LlamaModel = self.get_decoder()  # type: ignore[attr-defined]
        with decoder.one_first_index() if getattr(decoder.config, "use_custom_selection", False) else nullcontext():
            return super().generate(*args, **kwargs)  # type: ignore[misc]


class HimapLlamaForCausalLM(OneFirstIndexPerGenerate, LlamaForCausalLM):  # type: ignore[misc]
    """`LlamaForCausalLM` around `Himap_LlamaModel`."""

    def __init__(self, config: LlamaConfig) -> None:
        # Not LlamaForCausalLM's: it would first build a plain decoder, 13 GB of it at 7B.
        LlamaPreTrainedModel.__init__(self, config)
        self.model = Himap_LlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
