"""Memory that matrix products take from the allocator beside their result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vram.cards import Card
from vram.simulated import context
from vram.simulated.context import SimulatedCuda
from vram.simulated.kernels.cublas import lt_workspace_bytes, workspace_bytes

SMALL, LARGE, LT = 8_519_680, 32 * 2**20, 2**20


@pytest.mark.parametrize(
    ("capability", "version", "n_bytes"),
    [
        ((8, 0), (2, 14), SMALL),
        ((9, 0), (2, 11), LARGE),
        ((10, 0), (2, 11), SMALL),
        ((12, 0), (2, 13), LARGE),
        ((12, 1), (2, 13), LARGE),
        ((11, 0), (2, 13), SMALL),
        ((11, 0), (2, 14), LARGE),
        ((13, 0), (2, 14), SMALL),
    ],
)
def test_a_workspace_is_what_that_torch_takes_on_that_card(
    capability: tuple[int, int], version: tuple[int, int], n_bytes: int
) -> None:
    """8.125 MiB, and 32 MiB from Hopper on; Blackwell's came with 2.12, the rest of its kind with 2.14."""
    assert workspace_bytes(capability, version, None) == n_bytes
    assert lt_workspace_bytes((2, 11)) == LT
    assert lt_workspace_bytes((2, 12)) == 0


def test_the_environment_sets_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUBLAS_WORKSPACE_CONFIG as cuBLAS reads it: sizes in KiB and their numbers; reproducible runs set it."""
    assert workspace_bytes((9, 0), (2, 13), ":4096:8") == LARGE
    assert workspace_bytes((9, 0), (2, 13), ":4096:2:16:8") == SMALL
    assert workspace_bytes((9, 0), (2, 13), "") == LARGE
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    assert left_by(lambda a, v: torch.mm(a, a)) == 16 * 8 * 1024


MATRIX_BYTES = 64 * 64 * 4


def left_by(product: Callable[[Tensor, Tensor], object]) -> int:
    """Bytes that a product of a matrix and a vector leaves on the card."""
    with SimulatedCuda("24GiB"), torch.no_grad():
        a, v = torch.zeros(64, 64, device="cuda"), torch.zeros(64, device="cuda")
        before = torch.cuda.memory_allocated()
        product(a, v)
        return torch.cuda.memory_allocated() - before


PRODUCTS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "mm": lambda a, v: torch.mm(a, a),
    "mm, out": lambda a, v: torch.mm(a, a, out=torch.empty_like(a)),
    "bmm": lambda a, v: torch.bmm(a[None], a[None]),
    "mv": lambda a, v: torch.mv(a, v),
    "dot": lambda a, v: torch.dot(v, v),
    "addmm": lambda a, v: torch.addmm(v, a, a),
    "addmm_": lambda a, v: torch.empty_like(a).addmm_(a, a),
    "addmv": lambda a, v: torch.addmv(v, a, v),
    "baddbmm_": lambda a, v: torch.empty_like(a)[None].baddbmm_(a[None], a[None]),
    "linear": lambda a, v: torch.nn.functional.linear(a, a, v),
    "distances": lambda a, v: torch.cdist(a, a),
    "einsum": lambda a, v: torch.einsum("ij,jk->ik", a, a),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_whatever_cublas_computes_first_takes_its_workspace(product: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves it there, as no tensor's."""
    monkeypatch.setattr(context, "_VERSION", (2, 13))
    assert left_by(PRODUCTS[product]) == SMALL


def test_a_single_row_needs_no_distance_to_the_next_but_in_a_batch() -> None:
    """A matrix of one row is read as it lies; of a batch PyTorch makes a copy where a stride is 0."""
    with SimulatedCuda(Card("test", 2**30, context_bytes=0), cublas_workspace=False), torch.no_grad():
        a = torch.zeros(64, 64, device="cuda")
        row = a.as_strided((1, 64), (0, 1))
        torch.cuda.reset_peak_memory_stats()
        row @ a
        assert torch.cuda.max_memory_allocated() == MATRIX_BYTES + 512
        for alone in (a.as_strided((64, 1), (1, 0)), a.as_strided((1, 1), (5, 7))):
            alone @ a[:1]  # one column, one element
        assert torch.cuda.max_memory_allocated() == 2 * MATRIX_BYTES
        torch.cuda.reset_peak_memory_stats()
        torch.bmm(row[None], a[None])
        assert torch.cuda.max_memory_allocated() == MATRIX_BYTES + 512 + 512


def test_what_cublas_does_not_compute_takes_none() -> None:
    """Elementwise work, and products on the CPU."""
    assert left_by(lambda a, v: a * a + v) == 0
    assert left_by(lambda a, v: torch.zeros(4, 4) @ torch.zeros(4, 4)) == 0


def test_cublaslt_has_a_workspace_of_its_own_before_torch_2_12(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken by the first product that adds a bias on the way; not by one that can't."""
    monkeypatch.setattr(context, "_VERSION", (2, 11))
    assert left_by(PRODUCTS["linear"]) == SMALL + LT
    assert left_by(PRODUCTS["mm"]) == SMALL
    assert left_by(lambda a, v: torch.addmm(v, a, a, beta=2)) == SMALL
    assert left_by(lambda a, v: torch.addmm(v, a[:1], a)) == SMALL + LT  # a single row, as a classifier's
    assert left_by(lambda a, v: torch.addmm(v, a[:, :1], a[:1])) == SMALL
    assert left_by(lambda a, v: torch.addmm(v[:1], a, a[:, :1])) == SMALL
    assert left_by(lambda a, v: torch.addmm(v[:1], a, a)) == SMALL
    assert left_by(lambda a, v: torch.addmm(v[:1].expand(64), a, a)) == SMALL
    assert left_by(lambda a, v: torch.addmm(v.cfloat(), a.cfloat(), a.cfloat())) == SMALL
    monkeypatch.setattr(context, "_VERSION", (2, 13))
    assert left_by(PRODUCTS["linear"]) == SMALL


LAYOUTS: dict[str, tuple[Callable[[Tensor], tuple[Tensor, Tensor]], int]] = {
    "by rows": (lambda a: (a, a), 0),
    "by columns": (lambda a: (a.t(), a.t()), 0),
    "rows of a larger one": (lambda a: (a[::2, :32], a[:32]), 0),
    "columns of a larger one": (lambda a: (a, a.t()[:, ::2]), 0),
    "every other element": (lambda a: (a[:, ::2], a[:32]), MATRIX_BYTES // 2),
    "one row, expanded": (lambda a: (a[:1].expand(64, 64), a), MATRIX_BYTES),
    "both": (lambda a: (a[:, ::2], a[::2, ::2]), MATRIX_BYTES // 2 + MATRIX_BYTES // 4),
}


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_operand_that_cublas_cannot_read_is_copied_for_the_moment(layout: str, batch: bool) -> None:
    """It reads rows or columns at a fixed distance (prepare_matrix_for_cublas); the copy is gone afterwards."""
    make, copied_bytes = LAYOUTS[layout]
    with SimulatedCuda(Card("test", 2**30, context_bytes=0), cublas_workspace=False), torch.no_grad():
        first, second = make(torch.zeros(64, 64, device="cuda"))
        if batch:
            first, second = first[None], second[None]
        torch.cuda.reset_peak_memory_stats()
        result = first @ second if not batch else torch.bmm(first, second)
        made_bytes = result.untyped_storage().nbytes()
        assert torch.cuda.max_memory_allocated() == MATRIX_BYTES + made_bytes + copied_bytes
        assert torch.cuda.memory_allocated() == MATRIX_BYTES + made_bytes


@pytest.mark.parametrize(("version", "taken"), [((2, 11), True), ((2, 13), False)])
def test_a_batch_of_outer_products_is_triton_s_from_2_13_on(
    version: tuple[int, int], taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes no workspace, and copies no operand."""
    monkeypatch.setattr(context, "_VERSION", version)
    with SimulatedCuda(Card("test", 2**30, context_bytes=0)) as cuda, torch.no_grad():
        column, row = torch.zeros(2, 64, 1, device="cuda"), torch.zeros(2, 1, 64, device="cuda")
        before = cuda.allocator.allocated_bytes
        torch.bmm(column, row)
        assert (cuda.allocator.allocated_bytes > before) == taken
