"""HiMAP pruning and custom selection inside transformers' LLaMA decoder: one thin adapter, no algorithm."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import rotate_half
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from himap.frozen import Frozen, Group, Kept, check_cache, freeze, frozen_choice
from himap.generation import FirstIndex, Generating, OneFirstIndexPerGenerate
from himap.layout import Row, cached_tokens, rows_to_select
from himap.scoring import TILE_BYTES, column_scores
from himap.selection import aggregate, farthest_points, most_similar, top_tokens
from himap.settings import CustomSettings, HimapSettings, Settings, active_settings

Rope = tuple[Tensor, Tensor]


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
    an image not followed by text (HiMAP) or not in the first forward on its cache, padding on the right, caches other
    than DynamicCache, and caches that were cropped into the image or are used on with every mode off.
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
        run: _Prefill | _Continuation
        if isinstance(plan, Frozen):
            run = _Continuation(self, plan, hidden, rope, plan.padding_masks(attention_mask, seen, hidden))
        else:
            run = _Prefill(self, settings, plan, hidden, rope)
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
        if past_key_values is not None and isinstance(run, _Prefill):
            freeze(past_key_values, run.frozen())
        return BaseModelOutputWithPast(last_hidden_state=self.norm(run.hidden), past_key_values=past_key_values)


class _Run:
    """One forward: what moves from layer to layer. `hidden` is (batch, tokens, E); `rope` is of original positions."""

    def __init__(self, model: Himap_LlamaModel, hidden: Tensor, rope: Rope, kept: Kept) -> None:
        self.model, self.hidden, self.rope, self.kept = model, hidden, rope, kept

    def _causal_mask(self, layer_index: int, past_key_values: Any, padding_mask: Tensor | None) -> Tensor | None:
        """The mask for layers as long as this one; None where the attention kernel needs none."""
        mask = create_causal_mask(
            config=self.model.config,
            inputs_embeds=self.hidden,
            attention_mask=padding_mask,
            past_key_values=past_key_values,
            position_ids=None,
            layer_idx=layer_index,
        )
        return cast("Tensor | None", mask)


class _Continuation(_Run):
    """A forward on a pruned cache: nothing is chosen, each group of layers has the length the prefill left it."""

    def __init__(
        self, model: Himap_LlamaModel, frozen: Frozen, hidden: Tensor, rope: Rope, padding_masks: list[Tensor | None]
    ) -> None:
        super().__init__(model, hidden, rope, frozen.kept)
        self._padding_masks = {
            group.first_layer: mask for group, mask in zip(frozen.groups, padding_masks, strict=True)
        }
        self._mask: Tensor | None = None

    def before_layer(self, layer_index: int) -> None:
        pass

    def watching(self, layer_index: int) -> AbstractContextManager[None]:
        return nullcontext()

    def causal_mask(self, layer_index: int, past_key_values: Any) -> Tensor | None:
        if layer_index in self._padding_masks:
            self._mask = self._causal_mask(layer_index, past_key_values, self._padding_masks[layer_index])
        return self._mask


class _Prefill(_Run):
    """A forward that chooses: `rows` tell where padding and image stand in each row of the present `hidden`."""

    def __init__(
        self, model: Himap_LlamaModel, settings: Settings, rows: tuple[Row, ...], hidden: Tensor, rope: Rope
    ) -> None:
        super().__init__(model, hidden, rope, Kept())
        self._settings, self._rows = settings, rows
        self._width, self._image_end = hidden.shape[1], max(row.image.stop for row in rows if row.image)
        self._starts = tuple(row.start for row in rows)
        self._groups = [Group(0, 0, self._starts)]
        self._scores: list[Tensor] = []
        self._mask: Tensor | None = None

    def frozen(self) -> Frozen:
        """The state that a cache which this run filled must remember."""
        return Frozen(self._width, self._starts, self._image_end, tuple(self._groups), self.kept)

    def before_layer(self, layer_index: int) -> None:
        """Prune or aggregate the input of layer `layer_index` if the settings say so."""
        settings = self._settings
        if isinstance(settings, CustomSettings):
            if layer_index == settings.agg_layer:
                self._aggregate(settings)
            return
        if layer_index == settings.txt_layer:
            self.kept = Kept(txt=self._prune(layer_index, settings.txt_rank))
        elif layer_index == settings.img_layer and settings.img_rank is not None and self.kept.txt is not None:
            chosen = self._prune(layer_index, settings.img_rank)
            # The stages may have been scored on different devices.
            whole = tuple(txt[left.to(txt.device)] for txt, left in zip(self.kept.txt, chosen, strict=True))
            self.kept = Kept(txt=self.kept.txt, img=whole)

    @contextmanager
    def watching(self, layer_index: int) -> Iterator[None]:
        """While layer `layer_index` runs: where the next one begins a stage, the image is scored by its attention."""
        settings, following = self._settings, layer_index + 1
        stages: list[int | None] = []
        if isinstance(settings, HimapSettings):
            stages = [settings.txt_layer, settings.img_layer]
        if following not in stages or following == self.model.config.num_hidden_layers:
            yield
            return
        by_text = following == stages[0]
        attention = self.model.layers[layer_index].self_attn
        mine = threading.local()  # a hook on shared weights sees the forwards of other threads, too
        mine.seen = {}

        def look(projection: nn.Module, _: Any, output: Tensor) -> None:
            seen: dict[Any, Tensor] | None = getattr(mine, "seen", None)
            if seen is None:
                return
            # In the midst of the layer, so that its own projections serve and nothing must be kept until it ends.
            seen[projection] = output
            if len(seen) == 2:
                query, key = seen.pop(attention.q_proj), seen.pop(attention.k_proj)
                self._scores = self._scored(attention, query, key, by_text=by_text)

        hooks = [projection.register_forward_hook(look) for projection in (attention.q_proj, attention.k_proj)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def causal_mask(self, layer_index: int, past_key_values: Any) -> Tensor | None:
        group = self._groups[-1]
        if layer_index == group.first_layer:
            padding_mask = group.padding_mask(self.hidden.shape[1], self.hidden.device)
            self._mask = self._causal_mask(layer_index, past_key_values, padding_mask)
        return self._mask

    def _prune(self, layer_index: int, rank: int) -> tuple[Tensor, ...]:
        chosen = tuple(top_tokens(scores, rank) for scores in self._scores)
        self._drop_others(layer_index, chosen)
        return chosen

    @torch.no_grad()
    def _scored(self, attention: Any, query: Tensor, key: Tensor, *, by_text: bool) -> list[Tensor]:
        """Per row scores (image tokens,) by the text after the image, or else by the image itself.

        `query` and `key` (batch, tokens, heads * D) are the layer's own, before rope.
        """
        batch, width, _ = query.shape
        query, key = (one.view(batch, width, -1, attention.head_dim) for one in (query, key))
        scores = []
        for index, row in enumerate(self._rows):
            # Seen alone, a row has no padding.
            image = range(row.image.start - row.start, row.image.stop - row.start)
            rows = range(image.stop, width - row.start) if by_text else image
            if not image or not rows:
                scores.append(torch.zeros(len(image), device=query.device))
                continue
            cos, sin = (part[index if part.shape[0] > 1 else 0, row.start :].to(query.device) for part in self.rope)

            def rotate(vectors: Tensor, at: range, cos: Tensor = cos, sin: Tensor = sin) -> Tensor:
                here = slice(at.start, at.stop)
                return cast(Tensor, vectors * cos[here] + rotate_half(vectors) * sin[here])

            one = column_scores(
                query[index, row.start :][rows.start : rows.stop].transpose(0, 1),
                key[index, row.start :].transpose(0, 1),
                rows=rows,
                columns=image,
                scaling=attention.scaling,
                rotate=rotate,
                # Less than the layer's own MLP will take: scoring is not what a short prompt's peak is made of.
                tile_bytes=min(TILE_BYTES, width * self.model.config.intermediate_size * query.itemsize),
            )
            scores.append(one)
        return scores

    def _drop_others(self, layer_index: int, chosen: Sequence[Tensor]) -> None:
        """From this layer on keep all text and the image tokens `chosen` (ascending, per row relative to the image).

        Positions stay the original ones. Shorter rows are padded on the left to the longest, with their first token.
        """
        width = self.hidden.shape[1]
        left = [
            torch.cat(
                [
                    torch.arange(row.start, row.image.start, device=indices.device),
                    indices + row.image.start,
                    torch.arange(row.image.stop, width, device=indices.device),
                ]
            )
            for row, indices in zip(self._rows, chosen, strict=True)
        ]
        longest = max(indices.shape[0] for indices in left)
        starts = [longest - indices.shape[0] for indices in left]
        index = torch.stack([pad(indices, (start, 0)) for indices, start in zip(left, starts, strict=True)])
        self._rows = tuple(
            Row(start, range(begin := start + row.image.start - row.start, begin + indices.shape[0]))
            for row, start, indices in zip(self._rows, starts, chosen, strict=True)
        )
        self._groups = [group for group in self._groups if group.first_layer < layer_index]
        self._groups.append(Group(layer_index, self._width - longest, tuple(starts)))
        self.hidden = _gather(self.hidden, index)
        self.rope = (_gather(self.rope[0], index), _gather(self.rope[1], index))

    def _aggregate(self, settings: CustomSettings) -> None:
        first = settings.first_index
        if first is None and settings.method == "fps":
            shortest = min(len(row.image) for row in self._rows if row.image)
            first = (self.model._generating.first_index or FirstIndex()).draw(shortest)
        hidden = self.hidden.clone()  # the caller may own the embeddings
        selected = []
        for index, row in enumerate(self._rows):
            tokens = self.hidden[index, row.image.start : row.image.stop]
            if not row.image:
                selected.append(torch.arange(0, device=hidden.device))
                continue
            if settings.method == "tome":
                chosen = most_similar(tokens, settings.kept)
            else:
                assert first is not None
                chosen = farthest_points(tokens, settings.kept, first)
            hidden[index, row.image.start : row.image.stop] = 0
            merged = aggregate(tokens[chosen], tokens, settings.temperature)
            hidden[index, row.image.start : row.image.start + settings.kept] = merged.to(hidden.dtype)
            selected.append(chosen)
        self.hidden = hidden
        if settings.drop:
            first_slots = [torch.arange(one.shape[0], device=hidden.device) for one in selected]
            self._drop_others(settings.agg_layer, first_slots)
        self.kept = Kept(selected=tuple(selected))


def _gather(tokens: Tensor, index: Tensor) -> Tensor:
    """Row by row the tokens (batch or 1, tokens, X) at `index` (batch, kept)."""
    index = index.to(tokens.device)
    return tokens.expand(index.shape[0], -1, -1)[torch.arange(index.shape[0], device=tokens.device)[:, None], index]


class HimapLlamaForCausalLM(OneFirstIndexPerGenerate, LlamaForCausalLM):  # type: ignore[misc]
    """`LlamaForCausalLM` around `Himap_LlamaModel`."""

    def __init__(self, config: LlamaConfig) -> None:
        # Not LlamaForCausalLM's: it would first build a plain decoder, 13 GB of it at 7B.
        LlamaPreTrainedModel.__init__(self, config)
        self.model = Himap_LlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
