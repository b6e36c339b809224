"""One forward with a mode on, layer by layer: a prefill, which chooses, or a continuation on a pruned cache."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import LlamaModel
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import rotate_half

from himap.frozen import Frozen, Group, Kept
from himap.generation import FirstIndex
from himap.layout import Row
from himap.scoring import TILE_BYTES, column_scores
from himap.selection import aggregate, farthest_points, most_similar, top_tokens
from himap.settings import CustomSettings, Settings, Stage
from himap.tensor_parallel import heads_group, same_for_all, summed_over_heads

Rope = tuple[Tensor, Tensor]


class Run:
    """One forward: what moves from layer to layer. `hidden` is (batch, tokens, E); `rope` is of original positions."""

    def __init__(self, model: LlamaModel, hidden: Tensor, rope: Rope, kept: Kept) -> None:
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


class Continuation(Run):
    """A forward on a pruned cache: nothing is chosen, each group of layers has the length the prefill left it."""

    def __init__(
        self, model: LlamaModel, frozen: Frozen, hidden: Tensor, rope: Rope, padding_masks: list[Tensor | None]
    ) -> None:
        super().__init__(model, hidden, rope, frozen.kept)
        self._padding_masks = {
            group.first_layer: mask for group, mask in zip(frozen.groups, padding_masks, strict=True)
        }
        self._mask: Tensor | None = None

    def before_layer(self, layer_index: int) -> None:
        """Do nothing: the prefill chose."""

    def watching(self, layer_index: int) -> AbstractContextManager[None]:
        """A context in which nothing is scored."""
        return nullcontext()

    def causal_mask(self, layer_index: int, past_key_values: Any) -> Tensor | None:
        """The mask for layer `layer_index`; None where it needs none."""
        if layer_index in self._padding_masks:
            self._mask = self._causal_mask(layer_index, past_key_values, self._padding_masks[layer_index])
        return self._mask


class Prefill(Run):
    """A forward that chooses: `rows` tell where padding and image stand in each row of the present `hidden`."""

    def __init__(
        self,
        model: LlamaModel,
        settings: Settings,
        rows: tuple[Row, ...],
        hidden: Tensor,
        rope: Rope,
        first_index: FirstIndex,
    ) -> None:
        super().__init__(model, hidden, rope, Kept())
        self._settings, self._rows, self._first_index = settings, rows, first_index
        self._width, self._image_end = hidden.shape[1], max(row.image.stop for row in rows if row.image_tokens)
        self._starts = tuple(row.start for row in rows)
        self._groups = [Group(0, 0, self._starts)]
        self._stages = {} if isinstance(settings, CustomSettings) else {one.layer: one for one in settings.stages}
        self._scores: list[Tensor] | None = None  # those of the coming stage
        self._left: tuple[Tensor, ...] | None = None  # what earlier stages left, counted on the whole image
        self._mask: Tensor | None = None

    def frozen(self) -> Frozen:
        """The state that a cache which this run filled must remember."""
        return Frozen(self._width, self._starts, self._image_end, tuple(self._groups), self.kept)

    def before_layer(self, layer_index: int) -> None:
        """Prune or aggregate the input of layer `layer_index` if the settings say so."""
        if isinstance(self._settings, CustomSettings):
            if layer_index == self._settings.agg_layer:
                self._aggregate(self._settings)
        elif layer_index in self._stages:
            self._prune(self._stages[layer_index])

    @contextmanager
    def watching(self, layer_index: int) -> Iterator[None]:
        """While layer `layer_index` runs: where the next one begins a stage, the image is scored by its attention."""
        stage = self._stages.get(layer_index + 1)
        if stage is None or stage.layer == self.model.config.num_hidden_layers or self._keeps_all(stage):
            yield
            return
        layer, entering = self.model.layers[layer_index], self.hidden
        with self._scoring(stage, layer.self_attn):
            yield
        if self._scores is None:  # compiled code calls no hooks that came after it was made
            normed = layer.input_layernorm(entering)
            query, key = layer.self_attn.q_proj(normed), layer.self_attn.k_proj(normed)
            self._scores = self._scored(stage, layer.self_attn, query, key)

    @contextmanager
    def _scoring(self, stage: Stage, attention: Any) -> Iterator[None]:
        """Inside, `attention`'s own projections are scored when it makes them: nothing must be kept until it ends."""
        if torch.compiler.is_compiling():
            yield
            return
        mine = threading.local()  # a hook on shared weights sees the forwards of other threads, too
        mine.seen = {}

        def look(projection: nn.Module, _: Any, output: Tensor) -> None:
            if torch.compiler.is_compiling():  # or this run would be built into the code of all later ones
                return
            seen: dict[Any, Tensor] | None = getattr(mine, "seen", None)
            if seen is None:
                return
            seen[projection] = output
            if len(seen) == 2:
                query, key = seen.pop(attention.q_proj), seen.pop(attention.k_proj)
                self._scores = self._scored(stage, attention, query, key)

        hooks = [projection.register_forward_hook(look) for projection in (attention.q_proj, attention.k_proj)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def causal_mask(self, layer_index: int, past_key_values: Any) -> Tensor | None:
        """The mask for layer `layer_index`; None where it needs none."""
        group = self._groups[-1]
        if layer_index == group.first_layer:
            padding_mask = group.padding_mask(self.hidden.shape[1], self.hidden.device)
            self._mask = self._causal_mask(layer_index, past_key_values, padding_mask)
        return self._mask

    def _keeps_all(self, stage: Stage) -> bool:
        """Whether the stage has room for all image tokens that are left in each row: it needs no scores."""
        return all(row.image_tokens <= stage.rank for row in self._rows)

    def _prune(self, stage: Stage) -> None:
        scores, self._scores = self._scores, None
        if self._keeps_all(stage):
            chosen = tuple(torch.arange(row.image_tokens, device=self.hidden.device) for row in self._rows)
        else:
            assert scores is not None, "the layer before a stage that prunes is always scored"
            chosen = tuple(top_tokens(one, stage.rank) for one in scores)
            self._drop_others(stage.layer, chosen)
        if self._left is not None:  # the stages may have been scored on different devices
            chosen = tuple(left[kept.to(left.device)] for left, kept in zip(self._left, chosen, strict=True))
        self._left = chosen
        self.kept = replace(self.kept, **{stage.attention_from: chosen})

    @torch.no_grad()
    def _scored(self, stage: Stage, attention: Any, query: Tensor, key: Tensor) -> list[Tensor]:
        """Per row scores (image tokens,) by `attention` from the rows that `stage` names, over all heads.

        `query` and `key` (batch, tokens, heads * D) are the layer's own, before rope; D is the size of a head.
        """
        query, key, all_heads = self._by_heads(attention, query, key)
        width, heads = query.shape[1:3]
        scores = []
        for index, row in enumerate(self._rows):
            # Seen alone, a row has no padding.
            image = range(row.image.start - row.start, row.image.stop - row.start)
            end = width - row.start
            rows = {"txt": range(image.stop, end), "img": image, "last": range(end - 1, end)}[stage.attention_from]
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
                all_heads=all_heads,
            )
            scores.append(one)
        return summed_over_heads(scores, heads, all_heads, heads_group(attention.q_proj))

    def _by_heads(self, attention: Any, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor, int]:
        """`query` and `key` (batch, tokens, heads, D) as this process has them, and the model's heads.

        Raises ValueError where this process has not all tokens, or not the same share of both.
        """
        config, (batch, width) = self.model.config, self.hidden.shape[:2]
        shapes = [*query.shape[:2]], [*key.shape[:2]]
        if shapes != ([batch, width],) * 2:
            raise ValueError(f"scores need the attention of all {width} tokens, got {shapes[0][1]} (sequence parallel)")
        query, key = (one.reshape(batch, width, -1, attention.head_dim) for one in (query, key))
        heads, key_heads = query.shape[2], key.shape[2]
        if heads * config.num_key_value_heads != key_heads * config.num_attention_heads:
            raise ValueError(
                f"queries and keys must be shared out alike, got {heads} of {config.num_attention_heads} heads "
                f"and {key_heads} of {config.num_key_value_heads}"
            )
        return query, key, config.num_attention_heads

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
            shortest = min(row.image_tokens for row in self._rows if row.image_tokens)
            # Under tensor parallelism every process draws, so that their generators stay in step.
            group = heads_group(self.model.layers[settings.agg_layer].self_attn.q_proj)
            first = self._first_index.draw(shortest)
            first = same_for_all(first, group, self.hidden.device)
        hidden = self.hidden.clone()  # the caller may own the embeddings
        selected = []
        for index, row in enumerate(self._rows):
            tokens = self.hidden[index, row.image.start : row.image.stop]
            if not row.image_tokens:
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
