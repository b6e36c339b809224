"""HiMAP and FastV pruning and custom selection inside transformers' LLaMA decoder: one thin adapter, no algorithm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from himap.frozen import Frozen, Kept, check_cache, freeze, frozen_choice
from himap.generation import FirstIndex, Generating, OneFirstIndexPerGenerate
from himap.layout import Row, cached_tokens, rows_to_select
from himap.runs import Continuation, Prefill, Rope
from himap.settings import Settings, active_settings, removes_tokens


class Himap_LlamaModel(LlamaModel):  # type: ignore[misc]  # the published name
    """LLaMA decoder that can prune image tokens. With every mode off it returns `super().forward(...)`.

    Flags are read from `self.config` (see `himap.settings.FLAGS`) in every forward. `forward` takes one more argument,
    `image_mask` (batch, tokens) bool, true at image tokens; without it the configured lengths are used. Batches are
    padded on the left; each row is pruned by its own choice, and rows with no image by none. A batch with no image at
    all takes the dense path. Where tokens were removed, the output is as long as the longest row left, padded on the
    left.

    With a KV cache the choice is made once, at prefill, and kept with the cache: later tokens attend to what was kept.
    Without one (`use_cache=False`) it is made anew in every forward, generated tokens counting as text, as in the
    original. The first token is the same; a later one may differ where new text would have chosen otherwise.

    `kept` tells what the last forward, or the prefill of its cache, chose; None after one that had nothing to choose.
    Threads may share a model; `kept` is then that of whichever forward ended last.

    Raises ValueError for flags that break a rule, lengths that disagree with the mask, several images or one in pieces,
    an image not followed by text (HiMAP, FastV) or not in the first forward on its cache, padding on the right, caches
    other than DynamicCache, and caches that were cropped into the image or are used on with every mode off.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.kept: Kept | None = None
        self._generating = Generating()

    def reset_hmapv(self) -> None:
        """Drop what the last HiMAP run left behind. The flags stay as the config has them."""
        self.kept = None

    def reset_custom_selection(self) -> None:
        """Drop what the last custom selection left behind, the drawn first index included."""
        self.kept = None
        self._generating.first_index = None

    @contextmanager
    def one_first_index(self) -> Iterator[None]:
        """Inside, farthest-point selection starts from one first index, drawn once; outside, one per forward."""
        outer, self._generating.first_index = self._generating.first_index, FirstIndex()
        try:
            yield
        finally:
            self._generating.first_index = outer

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
        settings, frozen = active_settings(self.config), frozen_choice(past_key_values)
        if settings is None:
            if frozen is not None:
                raise ValueError(
                    "a cache filled with a mode on must not be used with every mode off: begin with an empty one"
                )
            return cast(BaseModelOutputWithPast, super().forward(**inputs))
        rows = None
        tokens = inputs_embeds if inputs_embeds is not None else input_ids
        if tokens is not None:
            seen = frozen.seen(past_key_values) if frozen else cached_tokens(past_key_values)
            rows = rows_to_select(settings, self.config, tokens, attention_mask, past_key_values, seen, image_mask)
        counted = self._generating.whole_length
        if counted and rows is not None and removes_tokens(settings):
            raise ValueError(
                f"the prompt must keep its length where {counted} counts its tokens, got a mode that removes image "
                "tokens: switch the mode off, or leave the argument out"
            )
        if rows is None and frozen is None:
            return cast(BaseModelOutputWithPast, super().forward(**inputs))
        return cast(BaseModelOutputWithPast, self._selective_forward(settings=settings, plan=frozen or rows, **inputs))

    @merge_with_config_defaults  # type: ignore[untyped-decorator]
    @capture_outputs  # type: ignore[untyped-decorator]
    def _selective_forward(
        self,
        settings: Settings,
        plan: tuple[Row, ...] | Frozen,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """`LlamaModel.forward`'s loop, in which the sequence may become shorter from layer to layer."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        if kwargs.get("cu_seq_lens_q") is not None:  # of continuous batching, where a row is many prompts
            raise ValueError("a row must be one prompt while image tokens are selected, got packed sequences")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
            check_cache(past_key_values)  # a config may ask for sliding layers
        seen = plan.seen(past_key_values) if isinstance(plan, Frozen) else 0
        if position_ids is None:
            starts = plan.starts if isinstance(plan, Frozen) else tuple(row.start for row in plan)
            position_ids = torch.arange(seen, seen + hidden.shape[1], device=hidden.device).unsqueeze(0)
            if any(starts):  # a row's positions are those it has alone
                position_ids = position_ids - torch.tensor(starts, device=hidden.device)[:, None]
        rope: Rope = self.rotary_emb(hidden, position_ids=position_ids)
        run: Prefill | Continuation
        if isinstance(plan, Frozen):
            run = Continuation(self, plan, hidden, rope, plan.padding_masks(attention_mask, seen, hidden))
        else:
            run = Prefill(self, settings, plan, hidden, rope, self._generating.first_index or FirstIndex())
        for layer_index, layer in enumerate(self.layers[: self.config.num_hidden_layers]):
            run.before_layer(layer_index)
            with run.watching(layer_index):
                run.hidden = layer(
                    run.hidden,
                    attention_mask=run.causal_mask(layer_index, past_key_values),
                    position_embeddings=run.rope,
                    # Never the gapped positions: transformers would read the gaps as packed sequences.
                    position_ids=None,
                    past_key_values=past_key_values,
                    use_cache=use_cache,
                    **kwargs,
                )
        self.kept = run.kept
        if past_key_values is not None and isinstance(run, Prefill):
            freeze(past_key_values, run.frozen())
        return BaseModelOutputWithPast(last_hidden_state=self.norm(run.hidden), past_key_values=past_key_values)


class HimapLlamaForCausalLM(OneFirstIndexPerGenerate, LlamaForCausalLM):  # type: ignore[misc]
    """`LlamaForCausalLM` around `Himap_LlamaModel`."""

    def __init__(self, config: LlamaConfig) -> None:
        # Not LlamaForCausalLM's: it would first build a plain decoder, 13 GB of it at 7B.
        LlamaPreTrainedModel.__init__(self, config)
        self.model = Himap_LlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
