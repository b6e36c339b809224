"""Scratch memory: what kernels allocate beside their result, and free at once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (as everybody calls it)

from vram.cards import Card
from vram.simulated import context
from vram.simulated.context import SimulatedCuda

_aten = torch.ops.aten
N = 512
FLOATS, INDICES, BITS = N * N * 4, N * N * 8, N * N
# Storage of CUB for a prefix sum over all, and to find where a mask is true; and the number of those places.
SCAN, SELECT, COUNT = 6144, 2048, 512
SUM = 17920  # partial sums of how many are true: 4 bytes of 108 x 8 x 5 blocks
SORT = 4259328 + 12288  # with the rest of its segment, which is too little to be a block


def filled(mask: Callable[[Tensor], Tensor], value: Callable[[Tensor], object]) -> Callable[[Tensor], None]:
    def fill(x: Tensor) -> None:
        x[mask(x)] = value(x)

    return fill


def on_the_cpu(x: Tensor) -> Tensor:
    """Three of N * N are true."""
    mask = torch.zeros(N, N, dtype=torch.bool)
    mask[0, :3] = True
    return mask


def known(x: Tensor) -> Tensor:
    return on_the_cpu(x).to("cuda")


def unknown(x: Tensor) -> Tensor:
    return x > 0


def filled_cross(x: Tensor) -> None:
    x[x[:, 0] > 0, x[0] > 0] = 0.0


def _back_through_group_norm(x: Tensor) -> object:
    """N samples of N channels of one element, in two groups."""
    statistics = x[:, :2].contiguous()
    return _aten.native_group_norm_backward(x, x, statistics, statistics, x[0], N, N, 1, 2, [True, True, True])


def _back_through_layer_norm(gradient: Tensor, x: Tensor) -> object:
    statistics, weights = x[:, :1], x[0]
    rows = (gradient, x, [N], statistics, statistics, weights, weights, [True, True, True])
    return _aten.native_layer_norm_backward(*rows)


CASES: dict[str, tuple[Callable[[Tensor], object], int]] = {
    "softmax by rows": (lambda x: x.softmax(-1), FLOATS),
    "softmax by columns": (lambda x: x.t().softmax(-1), 2 * FLOATS),
    "log_softmax by columns": (lambda x: x.t().log_softmax(-1), 2 * FLOATS),
    "layer_norm by rows": (lambda x: nn.functional.layer_norm(x, (N,)), FLOATS + 2 * N * 4),
    "layer_norm by columns": (lambda x: nn.functional.layer_norm(x.t(), (N,)), 2 * FLOATS + 2 * N * 4),
    "batch_norm of rows": (  # 32 blocks of 8192 rows pass on four values for each of 32 channels
        lambda x: F.batch_norm(x.view(-1, 32), None, None, training=True),
        FLOATS + 2 * 512 + 4 * 32 * 32 * 4 + 512,
    ),
    "batch_norm of few rows": (lambda x: F.batch_norm(x, None, None, training=True), FLOATS + 2 * N * 4),
    "group_norm": (
        lambda x: F.group_norm(x.view(2, 4, -1), 2, one := x.new_ones(4), one),
        FLOATS + 512 + 2 * 512 + 2 * 512,
    ),
    "group_norm of halves": (
        lambda x: F.group_norm(x.view(2, 4, -1).half(), 2, one := x.new_ones(4).half(), one),
        FLOATS // 2 + FLOATS // 2 + 512 + 2 * 512 + 2 * 512 + 2 * 512,  # statistics twice: in float32 first
    ),
    "group_norm without factors": (lambda x: F.group_norm(x.view(2, 4, -1), 2), FLOATS + 2 * 512),
    "group_norm of single elements": (
        lambda x: F.group_norm(x, 2, one := x.new_ones(N), one),
        FLOATS + 2048 + 2 * 4096,
    ),
    # The strides of the only picture do not say that its channels come last, and cuDNN reads a copy.
    "a convolution of tokens": (
        lambda x: nn.functional.conv2d(x[None].transpose(1, 2).view(1, N, 16, -1), x.new_ones(4, N, 1, 1)),
        FLOATS + 2 * 4 * N * 4,
    ),
    "rms_norm by rows": (lambda x: nn.functional.rms_norm(x, (N,)), FLOATS + N * 4),
    "rms_norm of halves": (lambda x: nn.functional.rms_norm(x.half(), (N,)), FLOATS // 2 + FLOATS // 2 + N * 4),
    "rms_norm by columns": (lambda x: nn.functional.rms_norm(x.t(), (N,)), 2 * FLOATS + N * 4),
    "masked_scatter": (lambda x: x.masked_scatter(unknown(x), x), BITS + FLOATS + INDICES + SCAN),
    "masked_scatter, broadcast": (lambda x: x.masked_scatter(unknown(x[:1]), x), 512 + FLOATS + INDICES + BITS + SCAN),
    "masked_scatter of one row": (lambda x: x[:1].masked_scatter(unknown(x), x), BITS + FLOATS + INDICES + SCAN),
    "masked_scatter of columns": (
        lambda x: x.masked_scatter(unknown(x), x.t()),
        BITS + FLOATS + INDICES + FLOATS + SCAN,
    ),
    "put a number where a mask is true": (filled(unknown, lambda x: 0.0), BITS),
    "add a number where a mask is true": (
        lambda x: x.index_put_((unknown(x),), torch.tensor(0.0), accumulate=True),
        BITS + 512 + FLOATS + 4 * INDICES + SORT,
    ),
    "put a tensor where a mask of bytes is not zero": (
        lambda x: x.index_put_((unknown(x).view(torch.uint8),), x.new_ones(1)),
        BITS + 512 + 2 * INDICES + COUNT + SELECT,
    ),
    "put a tensor there": (
        filled(unknown, lambda x: x.new_ones(1)),
        BITS + 512 + 2 * INDICES + COUNT + SELECT,
    ),
    "put a tensor where three are true": (
        filled(known, lambda x: x.new_ones(3)),
        BITS + 512 + COUNT + SUM,
    ),
    "put a tensor where three of the CPU's mask are": (filled(on_the_cpu, lambda x: x.new_ones(3)), 512 + 512),
    "put a number there": (filled(on_the_cpu, lambda x: 0.0), 512 + 512),
    "put a number in rows and columns": (filled_cross, 2 * 512 + 512 + 2 * N * 8 + COUNT + 1024),
    "rows at indices of the CPU": (lambda x: x[torch.arange(256)], FLOATS // 2 + 256 * 8),
    "rows at indices": (lambda x: x[torch.arange(256).to("cuda")], FLOATS // 2 + 256 * 8),
    "rows where a mask of the CPU is true": (lambda x: x[torch.arange(N) < 256], FLOATS // 2 + 256 * 8),
    # Five numbers; two truths of the probabilities, the least and greatest, as many numbers, five, what topk holds.
    "draw five of many": (lambda x: x.flatten()[:32064].multinomial(5), 512 + 4 * 512 + 128512 + 512 + 21504),
    "sum of numbers of a byte": (
        lambda x: x.new_zeros(N, dtype=torch.int8).cumsum(-1, dtype=torch.int8),
        2 * 512 + 1024,
    ),
    "a bias is added in place": (lambda x: F.linear(x.view(2, N // 2, N).mT, x.view(-1, N // 2)[:N], x[0]), 2 * FLOATS),
    # Values and places; sorted apart, by places of their own and what the sort takes. The search is over by then.
    "the greatest thousands in order": (lambda x: x.flatten().topk(8192), 2 * (32768 + 65536) + 65536 + 110080),
    "the most frequent of columns": (lambda x: x.mode(0), FLOATS + 2048 + 4096),
    # How often each is repeated, where each one ends, and the result.
    "repeat each": (lambda x: torch.repeat_interleave(x.new_ones(4096, dtype=torch.int64)), 3 * 4096 * 8),
    "draw by halves": (lambda x: x.half().bernoulli(), FLOATS // 2 + FLOATS // 2 + FLOATS),
    "windows apart": (lambda x: F.unfold(x[None, None], 1, stride=2), FLOATS),
    "windows of columns put together": (lambda x: F.fold(x.t()[None], (16, 527), 16), 2 * FLOATS),
    "attention with dropout": (
        lambda x: F.scaled_dot_product_attention(*[x.view(1, 8, N, 64).half()] * 3, dropout_p=0.5),
        FLOATS // 2 + FLOATS // 2 + 8 * N * 4 + 3 * 512,
    ),
    "softmax of masked rows": (lambda x: torch.ops.aten._safe_softmax(x, -1), FLOATS + BITS + 2 * 512),
    "the logarithm of a gamma function of two": (lambda x: x.mvlgamma(2), 3 * FLOATS),
    "roll rows and columns": (lambda x: x.roll((1, 1), (0, 1)), 2 * FLOATS),
    "roll all as one row": (lambda x: x.t().roll(1), 2 * FLOATS),
    "windows that overlap": (lambda x: F.unfold(x[None, None], (1, 2)), FLOATS + 2 * N * (N - 1) * 4),
    "one hot": (lambda x: F.one_hot(x.new_zeros(256, dtype=torch.int64), 16), 256 * 8 + 256 * 16 * 8),
    "the middle of a few": (lambda x: x[0, :64].median(), 512 + 2 * 512),
    "back through softmax": (lambda x: _aten._softmax_backward_data(x, x, -1, x.dtype), 2 * FLOATS),
    "back through softmax, of one number": (
        lambda x: _aten._softmax_backward_data(x[0, 0].expand(N, N), x, -1, x.dtype),
        2 * FLOATS,
    ),
    # The gradient, its product with the result, copies of both by rows.
    "back through softmax by columns": (lambda x: _aten._softmax_backward_data(x.t(), x.t(), -1, x.dtype), 4 * FLOATS),
    "back through softmax, a gradient by columns": (
        lambda x: _aten._softmax_backward_data(x.t(), x, -1, x.dtype),
        3 * FLOATS,
    ),
    "back through log_softmax": (lambda x: _aten._log_softmax_backward_data(x, x, -1, x.dtype), FLOATS),
    "back through log_softmax by columns": (
        lambda x: _aten._log_softmax_backward_data(x.t(), x.t(), -1, x.dtype),
        3 * FLOATS,
    ),
    # Three gradients, two sums a channel of each sample, two numbers a group. The statistics are there before.
    "back through group_norm of single elements": (
        _back_through_group_norm,
        (FLOATS + 2 * N * 4) + 2 * FLOATS + 2 * N * 2 * 4 + N * 2 * 4,
    ),
    "back through layer_norm": (lambda x: _back_through_layer_norm(x, x), FLOATS + 2 * N * 4),
    "back through layer_norm, of one number": (
        lambda x: _back_through_layer_norm(x[0, 0].expand(N, N), x),
        2 * FLOATS + 2 * N * 4,
    ),
    "back through layer_norm by columns": (lambda x: _back_through_layer_norm(x.t(), x.t()), 3 * FLOATS + 2 * N * 4),
    "put a tensor at indices": (lambda x: x.index_put_((torch.tensor([1]).to("cuda"),), x[0]), 512),
    "any of one number": (lambda x: x[0, 0].any(), 512 + 512),
    "all of one bit": (lambda x: x.new_zeros(1, dtype=torch.bool).all(), 512 + 512),
    "places of one number": (lambda x: x.new_zeros(()).nonzero(), 512 + COUNT + 512),
    # Absolute values, their bounds, what is near, equal and finite: seven blocks at once.
    "allclose": (lambda x: torch.allclose(ones := x.new_ones(4), ones), 512 + 7 * 512),
    # Where both are equal, where each is not a number: the last goes into the one before, if both are alike.
    "isclose without tolerance": (lambda x: x.isclose(x + 1, 0.0, 0.0, equal_nan=True), FLOATS + 3 * BITS),
    "allclose without tolerance": (
        lambda x: torch.allclose(ones := x.new_ones(4), ones, 0.0, 0.0, equal_nan=True),
        512 + 3 * 512,
    ),
    "isclose without tolerance, broadcast": (
        lambda x: torch.isclose(x, x[0], rtol=0.0, atol=0.0, equal_nan=True),
        3 * BITS + 512,
    ),
    "absolute values of complex numbers": (
        lambda x: torch.view_as_complex(x.view(N, -1, 2)).abs(),
        FLOATS + FLOATS // 2,
    ),
    "angles of complex numbers": (lambda x: torch.view_as_complex(x.view(N, -1, 2)).angle(), FLOATS + FLOATS // 2),
    "powers of a number": (lambda x: 2**x, FLOATS + 512),
    "powers of 1": (lambda x: 1**x, FLOATS),
    "halves where a mask is true": (lambda x: torch.where(x > 0, x.half(), x), FLOATS // 4 + FLOATS // 2 + 2 * FLOATS),
    "the CPU's number where a mask is true": (
        lambda x: torch.where(x > 0, torch.tensor(1.0), x),
        FLOATS // 4 + FLOATS + 512,
    ),
    "a cell of a GRU": (
        lambda x: _aten._thnn_fused_gru_cell(*(x[:, :6],) * 2, x[:, :2].contiguous()),
        N * 2 * 4 + N * 2 * 4 + 5 * N * 2 * 4,
    ),
    "back through a cell of a GRU": (
        lambda x: _aten._thnn_fused_gru_cell_backward(x[0, :N].view(-1, 1), x.view(-1)[: 5 * N].view(-1, 5), True),
        2 * (3 * N * 4) + N * 4 + 2 * 512,
    ),
    "a cell of an LSTM without biases": (
        lambda x: _aten._thnn_fused_lstm_cell(*(x[:, :8],) * 2, x[:, :2].contiguous()),
        N * 2 * 4 + 2 * N * 2 * 4 + 4 * N * 2 * 4,
    ),
    "normal by deviations": (lambda x: torch.normal(x, x), FLOATS + 512 + 512),
    "normal by means": (lambda x: torch.normal(x, 1.0), 2 * FLOATS),
    "unpooled by columns": (
        lambda x: F.max_unpool2d(x.t()[None], torch.zeros_like(x, dtype=torch.int64).t()[None], 1),
        2 * (INDICES + FLOATS),
    ),
    "unpooled volume by columns": (
        lambda x: F.max_unpool3d(x.t()[None, None], torch.zeros_like(x, dtype=torch.int64).t()[None, None], 1),
        2 * (INDICES + FLOATS),
    ),
    "unpooled by rows": (
        lambda x: F.max_unpool2d(x[None], torch.zeros_like(x, dtype=torch.int64)[None], 1),
        INDICES + FLOATS,
    ),
    "back through pdist of 0": (lambda x: _aten._pdist_backward(x[0, :1], x[:2], 0.0, x[0, :1]), 2 * N * 4),
    "back through pdist of 2": (lambda x: _aten._pdist_backward(x[0, :1], x[:2], 2.0, x[0, :1]), 2 * 2 * N * 4),
}


@pytest.mark.parametrize("case", CASES)
def test_a_kernel_holds_what_its_source_says(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of what it reads by rows, where a masked scatter puts each element, the indices of a mask."""
    monkeypatch.setattr(context, "_VERSION", (2, 13))
    run, n_bytes = CASES[case]
    with SimulatedCuda("24GiB", cublas_workspace=False), torch.no_grad():
        x = torch.randn(N, N, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        result = run(x)
        assert torch.cuda.max_memory_allocated() - FLOATS == n_bytes
        del result
        assert torch.cuda.memory_allocated() == FLOATS


def test_values_that_are_added_at_indices_are_copied_unless_by_rows() -> None:
    """As in the backward pass of a table that is indexed, and its result permuted."""

    def peak_bytes(values: Callable[[Tensor], Tensor]) -> int:
        with SimulatedCuda("24GiB"), torch.no_grad():
            x, places = torch.zeros(N, N, device="cuda"), torch.arange(N, device="cuda")
            torch.cuda.reset_peak_memory_stats()
            x.index_put_((places,), values(x), accumulate=True)
            return torch.cuda.max_memory_allocated()

    assert peak_bytes(torch.Tensor.t) - peak_bytes(torch.Tensor.detach) == FLOATS


ALIKE: dict[str, tuple[Callable[[Tensor], object], Callable[[Tensor], object]]] = {
    "nansum": (torch.nansum, torch.sum),
    "amin": (torch.amin, torch.amax),
    "argmin": (torch.argmin, torch.argmax),
    "std_mean": (torch.std_mean, torch.std),
    "norm": (lambda x: torch.ops.aten.norm.Scalar(x, 2), torch.linalg.vector_norm),
    "_index_put_impl": (
        lambda x: torch.ops.aten._index_put_impl_(x, [x.new_ones(4, dtype=torch.int32)], x[:4], True),
        lambda x: x.index_put_((x.new_ones(4, dtype=torch.int32),), x[:4], accumulate=True),
    ),
}


@pytest.mark.parametrize("name", ALIKE)
def test_one_kernel_holds_as_much_by_each_of_its_names(name: str) -> None:
    """Beside its result."""

    def held(run: Callable[[Tensor], object]) -> int:
        with SimulatedCuda("24GiB", cublas_workspace=False), torch.no_grad():
            x = torch.randn(2 * N, 2 * N, device="cuda")
            torch.cuda.reset_peak_memory_stats()
            result = run(x)
            beside_result_bytes = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
            del result
        return beside_result_bytes

    assert held(ALIKE[name][0]) == held(ALIKE[name][1]) > 0


@pytest.mark.parametrize("loss", [F.mse_loss, F.smooth_l1_loss, F.soft_margin_loss, F.binary_cross_entropy])
def test_a_mean_of_losses_keeps_room_for_each(loss: Callable[..., Tensor]) -> None:
    """As on a card: its storage was made for the loss of each element, and whoever keeps the mean keeps that."""
    with SimulatedCuda("24GiB", cublas_workspace=False), torch.no_grad():
        x = torch.randn(N, N, device="cuda")
        kept = loss(x, x)
        assert kept.shape == ()
        assert torch.cuda.memory_allocated() == 2 * FLOATS
        kept = F.l1_loss(x, x)
        assert torch.cuda.memory_allocated() == FLOATS + 512


def test_one_hot_is_as_wrong_as_on_a_card() -> None:
    with SimulatedCuda("24GiB"), pytest.raises(RuntimeError, match="index tensor"):
        F.one_hot(torch.zeros(3, dtype=torch.int32, device="cuda"), 4)


TOO_MUCH: dict[str, Callable[[Tensor], object]] = {
    "a copy for softmax": lambda x: x.t().softmax(-1),
    "the second result of a sort": lambda x: x.sort(),
    "a product of copies": lambda x: x.view(64, 1, 1024, 1024).expand(64, 2, 1024, 1024) @ x[:1024, :1024],
    "a sum of a sum": lambda x: (x + 1) + 1,
}


@pytest.mark.parametrize("case", TOO_MUCH)
def test_what_a_kernel_holds_can_be_too_much_and_is_gone_then(case: str) -> None:
    """Memory that it had until then is freed, also while the error, whose traceback has frames, is handled."""
    with SimulatedCuda(Card("1000 MiB", 1000 * 2**20, context_bytes=0), cublas_workspace=False), torch.no_grad():
        x = torch.zeros(8192, 8192, device="cuda")  # 256 MiB
        kept = torch.zeros(240 * 2**20, dtype=torch.uint8, device="cuda") if "softmax" in case or "sum" in case else x
        with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate (256|512).00 MiB") as caught:
            TOO_MUCH[case](x)
        assert torch.cuda.memory_allocated() == 8192**2 * 4 + (0 if kept is x else kept.nbytes)
        assert caught.value.__traceback__ is not None
