"""Which image tokens to keep: pure choices, tensors in, tensors out. Ties go to the lowest index.

Shape letters: I image tokens, K tokens kept, Q queries, E embedding size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from himap.scoring import no_autocast


def top_tokens(scores_I: Tensor, keep: int) -> Tensor:
    """Ascending int64 indices_K of the `keep` highest scores; all of them when `keep` >= I. Keep 0 gives none."""
    _check_keep(keep)
    if keep >= scores_I.shape[0]:
        return torch.arange(scores_I.shape[0], device=scores_I.device)
    # A stable sort keeps equal scores in index order; topk makes no such promise.
    return scores_I.sort(descending=True, stable=True).indices[:keep].sort().values


def farthest_points(tokens_IE: Tensor, keep: int, first: int) -> Tensor:
    """Int64 indices_K, in the order chosen: from `first`, each next is farthest (1 - cosine) from all chosen so far.

    `keep` >= I gives arange(I).
    """
    _check_keep(keep)
    count = tokens_IE.shape[0]
    if keep >= count:
        return torch.arange(count, device=tokens_IE.device)
    if not 0 <= first < count:
        raise ValueError(f"first must be in 0..{count - 1}, got {first}")
    unit_IE = normalize(tokens_IE.float(), dim=-1)
    chosen_K = torch.empty(keep, dtype=torch.int64, device=tokens_IE.device)
    distance_I = torch.full((count,), float("inf"), device=tokens_IE.device)
    taken_I = torch.zeros(count, dtype=torch.bool, device=tokens_IE.device)
    newest = torch.tensor(first, device=tokens_IE.device)
    for position in range(keep):
        chosen_K[position] = newest
        taken_I[newest] = True  # a duplicate of a chosen token is at distance 0 like the token itself
        distance_I = torch.minimum(distance_I, 1 - _row_cosines(unit_IE, unit_IE[newest]))
        newest = distance_I.masked_fill(taken_I, float("-inf")).argmax()
    return chosen_K


def most_similar(tokens_IE: Tensor, keep: int) -> Tensor:
    """Int64 indices_K, most similar first: the tokens with the highest summed cosine similarity to all tokens.

    The fixed point of the original's ToMe-like k-means rounds (exact without duplicate tokens). `keep` >= I gives
    arange(I).
    """
    _check_keep(keep)
    count = tokens_IE.shape[0]
    if keep >= count:
        return torch.arange(count, device=tokens_IE.device)
    unit_IE = normalize(tokens_IE.float(), dim=-1)
    return _row_cosines(unit_IE, unit_IE.sum(dim=0)).sort(descending=True, stable=True).indices[:keep]


def aggregate(queries_QE: Tensor, tokens_IE: Tensor, temperature: float) -> Tensor:
    """Float32 aggregates_QE: softmax over tokens of cos(query, token) / `temperature`, applied to the tokens."""
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a finite number greater than 0, got {temperature}")
    temperature = max(temperature, torch.finfo(torch.float32).tiny)  # below, 1 / temperature is infinite
    with no_autocast(tokens_IE.device):
        return (cosines(queries_QE, tokens_IE) / temperature).softmax(dim=-1) @ tokens_IE.float()


def cosines(queries_QE: Tensor, tokens_IE: Tensor) -> Tensor:
    """Float32 similarity_QI: cosine of each query and each token; 0 for a zero vector."""
    with no_autocast(tokens_IE.device):
        return normalize(queries_QE.float(), dim=-1) @ normalize(tokens_IE.float(), dim=-1).T


def _check_keep(keep: int) -> None:
    if keep < 0:  # a slice would take it for "all but so many"
        raise ValueError(f"keep must be at least 0, got {keep}")


def _row_cosines(unit_IE: Tensor, direction_E: Tensor) -> Tensor:
    # Not a matrix product: BLAS gives equal rows different last bits, and ties would go to any of them.
    return (unit_IE * direction_E).sum(dim=-1)
