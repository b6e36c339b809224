"""Reads and writes at indices and where masks are true: what they need meanwhile, and how results are laid out.

Figures are those of PyTorch's own CUDA code of 2.13 on the properties of an H100, without a card, by
`python -m benchmarks.cardless`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.vram.simulated.devices import device, figures

SIZES = (40, 50, 60)


def first(n: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.arange(n, device="cuda", dtype=dtype)


def mask(*sizes: int, n: int = 3) -> Tensor:
    """The first `n` are true."""
    made = torch.zeros(sizes, dtype=torch.bool)
    made.view(-1)[:n] = True
    return made.to("cuda")


# Index: figures of the read, and of its backward pass.
READS: dict[str, tuple[Callable[[Tensor], Tensor], list[int], list[int]]] = {
    "with a dimension between": (
        lambda x: x[first(5), :, first(5)],
        [1080, 1080, 3],
        [960161, 478920, 7],
    ),
    "at a transposed index": (lambda x: x[first(12).view(3, 4).t()[:, :3]], [144096, 144096, 2], [624385, 335904, 7]),
    "at many of a dimension, whose sort takes two passes": (
        lambda x: x[:, first(50).repeat(60)],
        [28824000, 28824000, 2],
        [629759, -28344000, 6],
    ),
    "at numbers of 32 bits, expanded": (
        lambda x: x[first(20, torch.int32)[:, None], first(5, torch.int32)],
        [25700, 24100, 5],
        [483201, 455900, 6],
    ),
    "at none": (lambda x: x[first(0)], [0, 0, 0], [480000, 480000, 1]),
}


@pytest.mark.parametrize("case", READS)
def test_a_read_at_indices_and_its_gradient_take_what_they_do_on_a_card(case: str) -> None:
    """A gradient is put in the order of its places: a sort, and a copy where indices have dimensions between them."""
    read, forward, backward = READS[case]
    with device("H100"):
        x = torch.zeros(SIZES, device="cuda", requires_grad=True)
        torch.ones(2, device="cuda", requires_grad=True).sum().backward()
        assert figures(lambda: read(x)) == forward
        result = [read(x)]
        gradient = torch.ones_like(result[0])
        assert figures(lambda: torch.autograd.backward([result.pop()], [gradient])) == backward


WRITES: dict[str, tuple[Callable[[Tensor], Any], Callable[[], Tensor], list[int]]] = {
    "added where three rows are true": (lambda x: mask(40), lambda: torch.zeros(3, 50, 60), [1051, 0, 5]),
    "added where all rows are": (lambda x: mask(40, n=40), lambda: torch.zeros(40, 50, 60), [1347, 0, 5]),
    "added where three of a transposed mask are": (
        lambda x: mask(50, 40).t(),
        lambda: torch.zeros(3, 60),
        [3075, 0, 5],
    ),
    "added where an expanded mask is": (
        lambda x: mask(40, 1).expand(40, 50),
        lambda: torch.zeros(150, 60),
        [6000, 0, 5],
    ),
    "added at none": (lambda x: first(0), lambda: torch.zeros(0, 50, 60), [0, 0, 0]),
}


@pytest.mark.parametrize("case", WRITES)
def test_what_is_added_at_indices_takes_what_it_does_on_a_card(case: str) -> None:
    """The search for where a mask is true comes first, and one that has gaps is copied for it."""
    indices, value, expected = WRITES[case]
    with device("H100"), torch.no_grad():
        x = torch.zeros(SIZES, device="cuda")
        places, values = indices(x), value().to("cuda")
        places = places if isinstance(places, tuple) else (places,)
        assert figures(lambda: x.index_put_(places, values, accumulate=True)) == expected


def test_few_that_are_true_among_many_are_counted_in_blocks() -> None:
    """A sum over more than one tile of 4,096 has partial sums of every block that fits: 132 x 8 x 5 of 4 bytes."""
    with device("H100"), torch.no_grad():
        x = torch.zeros(SIZES, device="cuda")
        for sizes, peak_bytes in ((SIZES, 21_507), ((40, 50), 1_075)):
            where, values = mask(*sizes), torch.zeros((3, *SIZES[len(sizes) :]), device="cuda")
            assert figures(lambda where=where, values=values: x.__setitem__(where, values))[0] == peak_bytes  # type: ignore[misc]


@pytest.mark.parametrize(
    ("read", "strides"),
    [
        (lambda x: x[None, first(20)], (60000, 3000, 60, 1)),
        (lambda x: x[first(20).view(4, 5).t()], (3000, 15000, 60, 1)),
        (lambda x: x[first(20).view(4, 5).t(), first(20).view(4, 5).t()], (60, 300, 1)),
        (lambda x: x[:, first(20)], (1200, 60, 1)),
    ],
)
def test_what_is_read_at_indices_is_laid_out_by_them_where_the_source_does_not_decide(
    read: Callable[[Tensor], Tensor], strides: tuple[int, ...]
) -> None:
    with device("H100"):
        x = torch.zeros(50, 40, 60, device="cuda").transpose(0, 1)
        assert read(x).stride() == strides


def test_a_mask_of_bytes_is_as_wrong_as_on_a_card_where_a_number_is_put() -> None:
    with device():
        x, bytes_ = torch.zeros(4, device="cuda"), torch.ones(4, dtype=torch.uint8, device="cuda")
        with pytest.raises(RuntimeError, match="only supports boolean masks"):
            x[bytes_] = 1.0
