"""HiMAP, FastV and custom selection written out plainly, to compare against; nothing of `himap` is used.

HiMAP is Yin, Si, Wang, *Lifting the Veil on Visual Information Flow in MLLMs* (CVPR 2025, arXiv 2503.13108); FastV is
Chen et al., *An Image is Worth 1/2 Tokens After Layer 2* (ECCV 2024, arXiv 2403.06764). One prompt
at a time, no padding and no cache: every call computes everything anew, in float64, with attention as whole matrices.

Shape letters: N tokens at the layer, E hidden size, H query heads, D size of a head, I image tokens, Q queries,
V vocabulary. Image tokens are counted from the image's first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Himap:
    """Before `txt_layer` keep `txt_rank` image tokens; of these, before `img_layer`, `img_rank` (None: all)."""

    txt_layer: int
    txt_rank: int
    img_layer: int | None
    img_rank: int | None


@dataclass(frozen=True)
class Fastv:
    """Before `agg_layer` keep the `attention_rank` image tokens that the last token attends to most."""

    agg_layer: int
    attention_rank: int


@dataclass(frozen=True)
class Custom:
    """At the input of `agg_layer` put `kept_tokens` aggregates in the image's first places; zero or drop the others."""

    agg_layer: int
    kept_tokens: int
    selection_method: str  # "fps" or "tome"
    temperature: float
    first_index: int  # of fps
    drop: bool


@dataclass
class Answer:
    """Outputs for one prompt."""

    logits: Array = field(init=False)  # (N, V), of the tokens left after the last layer
    positions: list[int] = field(init=False)  # theirs in the whole prompt, ascending
    lengths: list[int] = field(default_factory=list)  # tokens that entered each layer
    txt: list[int] | None = None  # image tokens kept by HiMAP's text stage, ascending; None: it did not happen
    img: list[int] | None = None  # by its image stage
    last: list[int] | None = None  # by FastV
    selected: list[int] | None = None  # by custom selection, in the order of selection
    scores: list[list[float]] = field(default_factory=list)  # of each stage of HiMAP or FastV
    gap: float = inf  # how far the nearest rival was behind a token that was chosen, at the closest of all choices


class Reference:
    """A LLaMA given by the state dict and the config of a transformers LlamaForCausalLM."""

    def __init__(self, state: Mapping[str, Any], config: Any) -> None:
        self.weights: dict[str, Array] = {name: tensor.double().numpy() for name, tensor in state.items()}
        self.config = config

    def embed(self, ids: Iterable[int]) -> Array:
        return self.weights["model.embed_tokens.weight"][list(ids)]

    def answer(
        self,
        embeds: Array,
        sys: int,
        img: int,
        method: Himap | Fastv | Custom | None = None,
        frozen: Answer | None = None,
    ) -> Answer:
        """Run the prompt `embeds` (N, E): `sys` tokens, `img` of an image, then text, generated tokens included.

        `frozen` imposes HiMAP's or FastV's choice in an earlier answer. Custom selection needs no such thing: it looks
        at the image alone, which no later token changes.
        """
        hidden = np.array(embeds, dtype=np.float64)
        positions = list(range(len(hidden)))
        attention: Array | None = None  # of the layer before
        answer = Answer()
        for layer in range(self.config.num_hidden_layers):
            image = [row for row, position in enumerate(positions) if sys <= position < sys + img]
            text = [row for row, position in enumerate(positions) if position >= sys + img]
            left = image

            if isinstance(method, Himap) and img > 0 and layer in (method.txt_layer, method.img_layer):
                assert attention is not None
                first_stage = layer == method.txt_layer
                lookers = text if first_stage else image
                rank = method.txt_rank if first_stage else method.img_rank
                assert rank is not None
                mean_over_heads = attention.mean(axis=0)
                scores = [float(mean_over_heads[lookers, column].sum()) for column in image]
                answer.scores.append(scores)
                imposed = None
                if frozen is not None:
                    imposed = frozen.txt if first_stage else frozen.img
                if imposed is None:
                    best, gap = highest(scores, rank)
                    left = sorted(image[index] for index in best)
                    answer.gap = min(answer.gap, gap)
                else:
                    left = [row for row in image if positions[row] - sys in imposed]
                kept = [positions[row] - sys for row in left]
                if first_stage:
                    answer.txt = kept
                else:
                    answer.img = kept

            if isinstance(method, Fastv) and img > 0 and layer == method.agg_layer:
                assert attention is not None
                scores = [float(attention.mean(axis=0)[-1, column]) for column in image]
                answer.scores.append(scores)
                if frozen is not None and frozen.last is not None:
                    answer.last = frozen.last
                else:
                    answer.last, gap = highest(scores, method.attention_rank)
                    answer.gap = min(answer.gap, gap)
                    answer.last.sort()
                left = [image[index] for index in answer.last]

            if isinstance(method, Custom) and layer == method.agg_layer and method.kept_tokens < img:
                tokens = hidden[image]
                select = farthest_points if method.selection_method == "fps" else most_similar
                answer.selected, answer.gap = select(tokens, method)
                hidden[image] = 0.0
                hidden[image[: method.kept_tokens]] = aggregate(tokens[answer.selected], tokens, method.temperature)
                if method.drop:
                    left = image[: method.kept_tokens]

            here = [row for row in range(len(positions)) if row not in image or row in left]
            hidden, positions = hidden[here], [positions[row] for row in here]
            answer.lengths.append(len(positions))
            hidden, attention = self._layer(f"model.layers.{layer}", hidden, positions)
        answer.logits = self._linear("lm_head", self._norm("model.norm", hidden))
        answer.positions = positions
        return answer

    def _layer(self, name: str, hidden: Array, positions: list[int]) -> tuple[Array, Array]:
        """Hidden states (N, E) after the layer, and its attention (H, N, N)."""
        attended, attention = self._attention(
            f"{name}.self_attn", self._norm(f"{name}.input_layernorm", hidden), positions
        )
        hidden = hidden + attended
        x = self._norm(f"{name}.post_attention_layernorm", hidden)
        gate = self._linear(f"{name}.mlp.gate_proj", x)
        silu = gate / (1.0 + np.exp(-gate))
        return hidden + self._linear(f"{name}.mlp.down_proj", silu * self._linear(f"{name}.mlp.up_proj", x)), attention

    def _attention(self, name: str, x: Array, positions: list[int]) -> tuple[Array, Array]:
        heads, kv_heads, D = self.config.num_attention_heads, self.config.num_key_value_heads, self.config.head_dim
        N = len(positions)
        queries = self._linear(f"{name}.q_proj", x)
        keys = self._linear(f"{name}.k_proj", x)
        values = self._linear(f"{name}.v_proj", x)
        attention, outputs = [], []
        for head in range(heads):
            own = slice(head * D, (head + 1) * D)
            kv_head = head // (heads // kv_heads)
            shared = slice(kv_head * D, (kv_head + 1) * D)
            query, key = self._rotate(queries[:, own], positions), self._rotate(keys[:, shared], positions)
            products = query @ key.T / np.sqrt(D)
            for row in range(N):
                products[row, row + 1 :] = -inf
            attention.append(softmax(products))
            outputs.append(attention[-1] @ values[:, shared])
        return self._linear(f"{name}.o_proj", np.concatenate(outputs, axis=1)), np.stack(attention)

    def _rotate(self, x: Array, positions: list[int]) -> Array:
        """Rotary embedding of one head (N, D): number d is paired with number d + D/2."""
        half = x.shape[1] // 2
        rotated = np.empty_like(x)
        for d in range(half):
            angles = np.array(positions) * self.config.rope_parameters["rope_theta"] ** (-d / half)
            cos, sin = np.cos(angles), np.sin(angles)
            rotated[:, d] = x[:, d] * cos - x[:, d + half] * sin
            rotated[:, d + half] = x[:, d + half] * cos + x[:, d] * sin
        return rotated

    def _norm(self, name: str, x: Array) -> Array:
        mean_square: Array = (x**2).mean(axis=1, keepdims=True)
        return x / np.sqrt(mean_square + float(self.config.rms_norm_eps)) * self.weights[f"{name}.weight"]

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", np.float64(0.0))


def highest(scores: list[float], count: int) -> tuple[list[int], float]:
    """Indices of the `count` highest, best first, ties to the lowest index; and the last one's lead over the rest."""
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    lead = scores[order[count - 1]] - scores[order[count]] if 0 < count < len(scores) else inf
    return order[:count], lead


def farthest_points(tokens: Array, method: Custom) -> tuple[list[int], float]:
    """From `first_index` on, always the token whose nearest selected token is farthest away, by 1 - cosine."""
    distances = 1.0 - cosines(tokens, tokens)
    selected, gap = [method.first_index], inf
    while len(selected) < method.kept_tokens:
        left = [index for index in range(len(tokens)) if index not in selected]
        nearest = [min(float(distances[index, other]) for other in selected) for index in left]
        (best,), lead = highest(nearest, 1)
        selected.append(left[best])
        gap = min(gap, lead)
    return selected, gap


def most_similar(tokens: Array, method: Custom) -> tuple[list[int], float]:
    """The tokens most similar to all, by the sum of their cosines, the most similar first."""
    sums = [float(row.sum()) for row in cosines(tokens, tokens)]
    selected, _ = highest(sums, method.kept_tokens)
    # Their order matters too: the first of them takes the image's first place.
    return selected, min(highest(sums, count)[1] for count in range(1, method.kept_tokens + 1))


def aggregate(queries: Array, tokens: Array, temperature: float) -> Array:
    """For each of the queries (Q, E) a mean of tokens (I, E), weighted by softmax(cosine / temperature)."""
    return softmax(cosines(queries, tokens) / temperature) @ tokens


def cosines(a: Array, b: Array) -> Array:
    return np.array([[x @ y for y in b] for x in a]) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))


def softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(axis=1, keepdims=True))
    weights: Array = powers / powers.sum(axis=1, keepdims=True)
    return weights
