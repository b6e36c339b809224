"""Temporary memory and views of operations, forward and backward.

Figures are those of PyTorch's own CUDA code of 2.13 on the properties of an H100, without a card, by
`python -m benchmarks.cardless`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (as everybody calls it)

from tests.vram.simulated.devices import device, figures

Sizes = tuple[int, ...]


def places(n: int) -> Tensor:
    """Samples of 9 kinds."""
    return (torch.arange(n) % 9).to("cuda")


def volume(channels: int) -> Tensor:
    """With its channels last."""
    made = torch.zeros(2, channels, 5, 6, 7, device="cuda")
    return made.to(memory_format=torch.channels_last_3d).requires_grad_()


def two_types(first: torch.dtype, second: torch.dtype) -> list[Tensor]:
    """Operands of a loss."""
    return [torch.zeros(40, 50, device="cuda", dtype=each, requires_grad=True) for each in (first, second)]


FORWARD: dict[str, tuple[Callable[..., Any], list[Sizes], torch.dtype, list[int]]] = {
    "distances, many points": (torch.cdist, [(4, 30, 8), (4, 20, 8)], torch.float32, [17600, 9600, 6]),
    "distances of one point": (torch.cdist, [(1, 8), (200, 8)], torch.float32, [9640, 800, 6]),
    "distances, broadcast": (
        lambda x, y: torch.cdist(x, y, 1),
        [(1, 30, 8), (4, 20, 8)],
        torch.float32,
        [13440, 9600, 2],
    ),
    "distances of columns": (
        lambda x, y: torch.cdist(x.mT, y.mT, 1),
        [(4, 8, 30), (4, 8, 20)],
        torch.float32,
        [16000, 9600, 3],
    ),
    "variances of complex numbers": (lambda x: x.var(1), [(40, 50)], torch.complex64, [480, 160, 3]),
    "and with their means": (lambda x: torch.var_mean(x, 1), [(40, 50)], torch.complex64, [1120, 480, 6]),
    "of many in a column": (lambda x: x.var(0), [(70000, 3)], torch.complex64, [1760, 12, 4]),
    "rows of a norm": (lambda x: x.renorm(2, 0, 1.0), [(40, 50)], torch.float32, [8160, 8000, 2]),
    "rows of a norm, of halves": (lambda x: x.renorm(2, 0, 1.0), [(40, 50)], torch.float16, [4240, 4000, 3]),
    "rows of a norm, of complex numbers": (
        lambda x: x.renorm(2, 0, 1.0),
        [(40, 50)],
        torch.complex64,
        [16480, 16000, 3],
    ),
    "few long rows of complex numbers of 128 bits": (
        lambda x: x.renorm(2, 0, 1.0),
        [(3, 100000)],
        torch.complex128,
        [4800636, 4800000, 4],
    ),
    "few long rows of a norm": (lambda x: x.renorm(2, 0, 1.0), [(3, 100000)], torch.float32, [1200012, 1200000, 2]),
    "places in columns": (
        lambda x, y: torch.searchsorted(x.t(), y.t()),
        [(10, 40), (50, 40)],
        torch.float32,
        [25600, 16000, 3],
    ),
    "places of a number": (lambda x: torch.searchsorted(x, 0.5), [(10,)], torch.float32, [20, 8, 3]),
    "places of doubles": (
        lambda x, y: torch.searchsorted(x, y.double()),
        [(40, 10), (40, 50)],
        torch.float32,
        [35200, 16000, 3],
    ),
    "counts with weights of integers": (
        lambda weights: torch.bincount(kinds := places(200), weights, 20) if len(weights) else kinds,
        [(200,)],
        torch.int64,
        [1776 + 1600, 160, 5],
    ),
    "a mask of bytes chooses": (
        lambda x, y: torch.where(x, y, y),
        [(40, 50), (40, 50)],
        torch.uint8,
        [2000 + 2000, 2000, 2],
    ),
}


@pytest.mark.filterwarnings("ignore:torch.searchsorted")  # that it copies what is not contiguous
@pytest.mark.parametrize("case", FORWARD)
def test_an_operation_takes_what_it_does_on_a_card(case: str) -> None:
    run, sizes, dtype, expected = FORWARD[case]
    with device("H100", cublas_workspace=False), torch.no_grad():
        operands = [torch.zeros(each, device="cuda", dtype=dtype) for each in sizes]
        assert figures(lambda: run(*operands)) == expected


BACKWARD: dict[str, tuple[Callable[..., Any], Callable[[], list[Tensor]], list[int]]] = {
    "distances of the first norm": (
        lambda x, y: torch.cdist(x, y, 1),
        lambda: [torch.zeros(4, n, 8, device="cuda", requires_grad=True) for n in (30, 20)],
        [102400, -3200, 5],
    ),
    "broadcast": (
        lambda x, y: torch.cdist(x, y, 1),
        lambda: [torch.zeros(*sizes, device="cuda", requires_grad=True) for sizes in ((1, 30, 8), (4, 20, 8))],
        [106240, -6080, 6],
    ),
    "of the number of components that differ": (
        lambda x, y: torch.cdist(x, y, 0),
        lambda: [torch.zeros(4, n, 8, device="cuda", requires_grad=True) for n in (30, 20)],
        [25600, -3200, 4],
    ),
    "of the greatest": (
        lambda x, y: torch.cdist(x, y, math.inf),
        lambda: [torch.zeros(4, n, 8, device="cuda", requires_grad=True) for n in (30, 20)],
        [102400, -3200, 5],
    ),
    "rows of a norm": (
        lambda x: x.renorm(2, 0, 1.0),
        lambda: [torch.zeros(40, 50, device="cuda", requires_grad=True)],
        [32480, 0, 7],
    ),
    "rows of a norm, of complex numbers": (
        lambda x: x.renorm(2, 0, 1.0),
        lambda: [torch.zeros(40, 50, device="cuda", dtype=torch.complex64, requires_grad=True)],
        [64480, 0, 7],
    ),
    # Its statistics, 160 B, go; gradients come.
    "rms_norm": (
        lambda x, factor: F.rms_norm(x, (50,), factor),
        lambda: [torch.zeros(*sizes, device="cuda", requires_grad=True) for sizes in ((40, 50), (50,))],
        [8200, 8200 - 160 - 8000, 2],
    ),
    "losses of halves and floats": (F.mse_loss, lambda: two_types(torch.float16, torch.float32), [12000, 4000, 2]),
    "smooth ones": (F.smooth_l1_loss, lambda: two_types(torch.float32, torch.float16), [12000, 4000, 2]),
    "batch norm of volumes with channels last": (
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda: [volume(8)],
        [13508, -64, 4],
    ),
}


@pytest.mark.parametrize("case", BACKWARD)
def test_a_backward_pass_takes_what_it_does_on_a_card(case: str) -> None:
    """Distances have a part of the gradient for each pair of points; their sum comes after."""
    run, make, expected = BACKWARD[case]
    with device("H100"):
        leaves = make()
        result = [run(*leaves)]
        gradient = torch.ones_like(result[0], requires_grad=False)
        assert figures(lambda: torch.autograd.backward([result.pop()], [gradient])) == expected


def test_rms_norm_is_one_kernel_to_autograd() -> None:
    """The result and a number for each row stay for a gradient, in any build of torch; the gradient has one itself."""
    with device("H100"):
        x = torch.zeros(40, 50, device="cuda", requires_grad=True)
        assert figures(lambda: F.rms_norm(x, (50,))) == [8000 + 160, 8000 + 160, 2]
        (gradient,) = torch.autograd.grad(torch.nn.RMSNorm(50, device="cuda")(x).sum(), x, create_graph=True)
        assert gradient.grad_fn is not None


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_volumes_with_channels_last_takes_a_factor_and_a_term(training: bool) -> None:
    """A number each, where it has no weights: kernels for channels last are of pictures alone."""
    with device("H100"):
        x, means, variances = volume(8), torch.zeros(8, device="cuda"), torch.ones(8, device="cuda")
        assert figures(lambda: F.batch_norm(x, means, variances, training=training)) == [13512, 13504, 5]


@pytest.mark.parametrize("groups", [1, 8])
def test_a_shuffle_of_one_group_or_of_single_channels_is_a_view(groups: int) -> None:
    """With a graph, and again and again."""
    with device():
        x = torch.zeros(2, 8, 9, 11, device="cuda", requires_grad=True)
        for _ in range(3):
            F.channel_shuffle(x, groups)
        assert figures(lambda: F.channel_shuffle(x, groups)) == [0, 0, 0]
        assert figures(lambda: F.channel_shuffle(x, 2)) == [x.nbytes, x.nbytes, 1]


def test_batch_norm_of_what_has_gaps_keeps_a_copy() -> None:
    """Input made of tokens with their channels first, which cuDNN reads without gaps."""
    with device("H100"):
        x = torch.zeros(20, 9, 8, device="cuda", requires_grad=True)
        norm = torch.nn.BatchNorm1d(8).to("cuda")
        norm(x.transpose(1, 2))
        assert figures(lambda: norm(x.transpose(1, 2))) == [11584, 11584, 4]


def test_norms_of_a_list_take_a_number_for_each_chunk_of_each() -> None:
    """As clipping of gradients does: as many chunks of 65,536 as the longest has, for all."""
    with device("H100"), torch.no_grad():
        tensors = [torch.zeros(n, device="cuda") for n in (200_000, 60, 70_000)]
        assert figures(lambda: torch._foreach_norm(tensors)) == [60, 12, 4]
        assert figures(lambda: torch._foreach_norm(tensors, 3))[0] == 12


WITH_THE_CPUS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "clamp": lambda x, number: torch.clamp(x, number),
    "clamp, in place": lambda x, number: x.clamp_(max=number),
    "clamp_min": torch.clamp_min,
    "addcdiv": lambda x, number: torch.addcdiv(x, x, number),
    "addmm": lambda x, number: torch.addmm(number, x, x),
    "lerp": lambda x, number: torch.lerp(x, number, 0.5),
    "logaddexp": torch.logaddexp,
    "normal": torch.normal,
    "addcmul": lambda x, number: torch.addcmul(x, number, x),
    "logical_and": lambda x, number: torch.logical_and(number, x),
    "masked_fill": lambda x, number: x.masked_fill(number > 0, 1.0),
    "masked_select": lambda x, number: x.masked_select(number > 0),
    "masked_scatter, composed of a checked one": lambda x, number: x.masked_scatter(number > 0, x),
    "isin": torch.isin,
    "igamma": lambda x, number: torch.igamma(number, x),
    "back through a power of it": lambda x, number: torch.autograd.backward(
        [torch.pow(number, x.requires_grad_()).sum()]
    ),
}


@pytest.mark.parametrize("case", WITH_THE_CPUS)
def test_a_number_of_the_cpu_is_as_wrong_as_on_a_card(case: str) -> None:
    """Where a card takes it, as in sums and products, it is fine."""
    with device():
        x, number = torch.ones(4, 4, device="cuda"), torch.tensor(2.0)
        taken = [x * number + number, torch.addcmul(x, x, number), torch.logical_and(x, number), torch.pow(number, x)]
        taken += [x.masked_fill(x > 0, number), torch.where(number > 0, x, number)]
        taken += [x.index_put_((x[0].long(),), number), torch.linspace(number, x[0, 0], 3, device=x.device)]
        assert {each.device for each in taken} == {x.device}
        with pytest.raises(RuntimeError, match="two devices, cuda:0 and cpu"):
            WITH_THE_CPUS[case](x, number)


def test_a_temporary_variance_is_gone_once_the_loss_has_its_copy() -> None:
    """It is the caller's alone, and the function lets it go."""
    with device("H100"):
        x, target, variance = (torch.zeros(40, 50, device="cuda", requires_grad=True) for _ in range(3))
        target.requires_grad_(False)
        assert figures(lambda: F.gaussian_nll_loss(x, target, variance + 1)) == [48000, 24004, 6]


HALVES, FLOATS = torch.float16, torch.float32
DIFFERENT_TYPES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "a binary cross entropy": (F.binary_cross_entropy, "Found dtype Half but expected Float"),
    "back through Huber's": (F.huber_loss, "Found dtype Half but expected Float"),
    "weights of classes": (
        lambda x, y: F.cross_entropy(x, places(40), y[0].detach()),
        "expected scalar type Float but found Half",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT_TYPES)
def test_a_loss_for_one_type_refuses_two_in_a_card_s_words(case: str) -> None:
    """Whether its forward or its backward kernel is the one for one type."""
    loss, words = DIFFERENT_TYPES[case]
    with device("H100"), pytest.raises(RuntimeError, match=words):
        torch.autograd.backward([loss(*two_types(FLOATS, HALVES))])


def test_huber_s_losses_are_of_the_input_s_type() -> None:
    """The target's type, though wider, is not the result's."""
    with device("H100"), torch.no_grad():
        x, target = two_types(HALVES, FLOATS)
        assert F.huber_loss(x, target, reduction="none").dtype == HALVES


WITHOUT_A_KERNEL: dict[str, tuple[Callable[[Tensor], Tensor], torch.dtype, str]] = {
    "angles of halves": (torch.angle, HALVES, "\"angle_cuda\" not implemented for 'Half'"),
    "bits of floats": (lambda x: x & x, FLOATS, "\"bitwise_and_cuda\" not implemented for 'Float'"),
    "bits of floats, in place": (lambda x: x.bitwise_or_(x), FLOATS, "\"bitwise_or_cuda\" not implemented for 'Float'"),
    "shifted halves": (lambda x: torch.bitwise_left_shift(x, 1), HALVES, "\"lshift_cuda\" not implemented for 'Half'"),
    "a polynomial of halves": (
        lambda x: torch.special.hermite_polynomial_h(x, 2),
        torch.bfloat16,
        "\"hermite_polynomial_h_cuda\" not implemented for 'BFloat16'",
    ),
    "distances of halves": (lambda x: torch.cdist(x, x, 1), HALVES, "\"cdist_cuda\" not implemented for 'Half'"),
}


@pytest.mark.parametrize("case", WITHOUT_A_KERNEL)
def test_a_type_without_a_kernel_is_refused_in_a_card_s_words(case: str) -> None:
    """The same of other types is fine."""
    run, dtype, words = WITHOUT_A_KERNEL[case]
    with device("H100"):
        with pytest.raises(NotImplementedError, match=words):
            run(torch.zeros(4, 4, device="cuda", dtype=dtype))
        fine = torch.float32 if dtype in (HALVES, torch.bfloat16) and "shift" not in case else torch.int64
        assert run(torch.zeros(4, 4, device="cuda", dtype=fine)).device.type == "cuda"
