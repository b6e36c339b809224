"""Pure choices: which image tokens are kept, and how the others are merged into them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor

from himap.selection import aggregate, cosines, farthest_points, most_similar, top_tokens
from tests.himap.models import golden

CASES = sorted({key.split(".")[0] for key in golden("pure_functions")})
CLOSE = {"atol": 1e-5, "rtol": 0.0}


class Vectors:
    def __init__(self, case: str) -> None:
        everything = golden("pure_functions")
        self.arrays = {key.split(".", 1)[1]: array for key, array in everything.items() if key.startswith(f"{case}.")}
        self.tokens = self["tokens"]
        self.keep = int(self.arrays["num_samples"])
        self.temperature = float(self.arrays["temperature"])

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[name])


@pytest.mark.parametrize("case", CASES)
def test_golden_similarity_and_aggregation(case: str) -> None:
    """Cosines and softmax-weighted merging are the reference's, at the default temperature too."""
    vectors = Vectors(case)

    assert_allclose(cosines(vectors.tokens, vectors.tokens), vectors["similarity"], **CLOSE)
    queries = vectors["agg_query_random"]
    assert_allclose(aggregate(queries, vectors.tokens, vectors.temperature), vectors["agg_out_random"], **CLOSE)
    assert_allclose(aggregate(queries, vectors.tokens, 0.1), vectors["agg_default_tau"], **CLOSE)


@pytest.mark.parametrize("case", [case for case in CASES if case != "dup"])  # there, rounding chooses
def test_golden_selections(case: str) -> None:
    """Farthest points from three first ones, and ToMe's choice, are the reference's in the reference's order."""
    vectors = Vectors(case)

    for seed in range(3):
        first = int(vectors.arrays[f"fps_seed{seed}_first"])
        assert_array_equal(farthest_points(vectors.tokens, vectors.keep, first), vectors[f"fps_seed{seed}"])
    chosen = most_similar(vectors.tokens, vectors.keep)
    assert_array_equal(chosen, vectors["tome"])
    merged = aggregate(vectors.tokens[chosen], vectors.tokens, vectors.temperature)
    assert_allclose(merged, vectors["agg_query_tome"], **CLOSE)


def choose(method: str, tokens: Tensor, keep: int) -> Tensor:
    return farthest_points(tokens, keep, first=0) if method == "fps" else most_similar(tokens, keep)


def test_fewer_than_none_can_not_be_kept() -> None:
    """A negative count is refused by each choice: a slice would have kept all but so many."""
    tokens = torch.ones(4, 2)
    for choice in (partial(top_tokens, tokens[:, 0]), partial(choose, "fps", tokens), partial(choose, "tome", tokens)):
        with pytest.raises(ValueError, match="keep must be at least 0, got -1"):
            choice(-1)


both_methods = pytest.mark.parametrize("method", ["fps", "tome"])


@both_methods
def test_golden_duplicates_stay_distinct(method: str) -> None:
    """Duplicate tokens never make an index come twice."""
    vectors = Vectors("dup")

    chosen = choose(method, vectors.tokens, vectors.keep).tolist()

    assert len(set(chosen)) == vectors.keep


@both_methods
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_distinct_and_ties_to_the_lowest(method: str, data: st.DataObject) -> None:
    """Among equal tokens the lowest index goes first, whatever the shapes; and no index comes twice."""
    count = data.draw(st.integers(2, 60))
    size = data.draw(st.sampled_from([1, 3, 16, 33, 100]))
    keep = data.draw(st.integers(1, count - 1))
    kinds = data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    tokens = torch.randn(4, size, generator=torch.Generator().manual_seed(size))[kinds]

    chosen = choose(method, tokens, keep).tolist()

    assert len(set(chosen)) == keep
    for kind in set(kinds):
        members = [index for index in chosen if kinds[index] == kind]
        expected = [index for index in range(count) if kinds[index] == kind][: len(members)]
        assert members == expected  # the first point, 0, is the lowest of its kind too


@both_methods
def test_all_equal_tokens_are_taken_in_order(method: str) -> None:
    """When every token is the same, the first ones are taken, first to last."""
    tokens = torch.randn(1, 50).expand(37, 50)

    assert choose(method, tokens, 9).tolist() == list(range(9))


def test_top_tokens_by_hand() -> None:
    """The best scores, in ascending index order; a tie goes to the lower index."""
    scores = torch.tensor([1.0, 5.0, 3.0, 3.0, 5.0, 3.0])

    assert top_tokens(scores, 3).tolist() == [1, 2, 4]
    assert top_tokens(scores, 4).tolist() == [1, 2, 3, 4]
    assert top_tokens(torch.zeros(100), 7).tolist() == list(range(7))


def test_top_tokens_edges() -> None:
    """None may be kept, or all, also out of none."""
    assert top_tokens(torch.randn(5), 0).tolist() == []
    assert top_tokens(torch.randn(5), 5).tolist() == [0, 1, 2, 3, 4]
    assert top_tokens(torch.empty(0), 0).tolist() == []
    assert top_tokens(torch.empty(0), 3).tolist() == []


@both_methods
@pytest.mark.parametrize("keep", [5, 6, 99])
def test_keeping_everything_is_the_identity(method: str, keep: int) -> None:
    """`keep` >= N gives 0..N-1 in order, whatever the first index would have been."""
    tokens = torch.randn(5, 8)

    assert choose(method, tokens, keep).tolist() == [0, 1, 2, 3, 4]
    assert farthest_points(tokens, keep, first=3).tolist() == [0, 1, 2, 3, 4]


def test_farthest_points_by_hand() -> None:
    """From east: west is farthest, then north (a quarter from both), then the nearest of all, north-east."""
    tokens = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -0.5]])

    assert farthest_points(tokens, 4, first=0).tolist() == [0, 3, 2, 4]


@pytest.mark.parametrize("first", [-1, 5])
def test_a_first_index_outside_is_refused(first: int) -> None:
    """The first farthest point must be one of the tokens."""
    with pytest.raises(ValueError, match=f"first must be in 0..4, got {first}"):
        farthest_points(torch.randn(5, 8), 2, first)


def test_zero_vectors_by_hand() -> None:
    """A zero vector is a quarter away from every token, and like none: neither first nor last by accident."""
    tokens = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])

    assert farthest_points(tokens, 3, first=0).tolist() == [0, 3, 2]
    assert most_similar(tokens, 3).tolist() == [0, 1, 2]


@both_methods
@pytest.mark.parametrize("broken", [0.0, float("nan"), float("inf")])
def test_degenerate_tokens(method: str, broken: float) -> None:
    """Zero, infinite and even NaN tokens leave the indices distinct."""
    tokens = torch.randn(12, 8)
    tokens[3:7] = broken

    chosen = choose(method, tokens, 9).tolist()

    assert len(set(chosen)) == 9


def test_zero_vectors_merge_to_finite_values() -> None:
    """A zero vector weighs all tokens alike: no division by its length."""
    tokens = torch.randn(6, 8)
    tokens[0] = 0

    merged = aggregate(tokens[:2], tokens, 0.1)

    assert merged.isfinite().all()
    assert_allclose(merged[0], tokens.mean(dim=0), atol=1e-6)


@both_methods
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(method: str, dtype: torch.dtype) -> None:
    """Half-precision tokens are compared in float32: as if they had been widened before."""
    tokens = (torch.randn(50, 64) * 200).to(dtype)  # squares of these overflow float16

    assert_array_equal(choose(method, tokens, 20), choose(method, tokens.float(), 20))
    merged = aggregate(tokens[:5], tokens, 0.1)
    assert merged.dtype == torch.float32
    assert_allclose(merged, aggregate(tokens[:5].float(), tokens.float(), 0.1))


def test_autocast_changes_nothing() -> None:
    """Similarities and aggregates are float32 where autocast would make every product half precision."""
    tokens = torch.randn(20, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        merged, similar = aggregate(tokens[:5], tokens, 0.1), cosines(tokens, tokens)

    assert torch.equal(merged, aggregate(tokens[:5], tokens, 0.1))
    assert torch.equal(similar, cosines(tokens, tokens))


@pytest.mark.parametrize("temperature", [1e-30, 1e-40, 1e-320])
def test_the_coldest_temperatures(temperature: float) -> None:
    """Near 0 each token becomes the one most like it, itself, also where float32 has no such temperature."""
    tokens = torch.eye(6, 8)

    assert torch.equal(aggregate(tokens[2:4], tokens, temperature), tokens[2:4])


@pytest.mark.parametrize("temperature", [0.0, -0.1, float("nan"), float("inf")])
def test_bad_temperatures(temperature: float) -> None:
    """A temperature that is not a finite number above 0 is refused."""
    with pytest.raises(ValueError, match="temperature must be a finite number greater than 0"):
        aggregate(torch.randn(2, 4), torch.randn(3, 4), temperature)
