"""Training steps on a simulated card: what backward passes and optimizers hold, by hand arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import graph
from torch.nn import functional as F  # noqa: N812 (as everybody calls it)
from torch.utils.checkpoint import checkpoint

from tests.vram.simulated.devices import device, figures
from vram.simulated.context import SimulatedCuda

SIDE = 512
MIB = 2**20  # one matrix of SIDE x SIDE in float32


def matrix(**options: Any) -> Tensor:
    return torch.ones(SIDE, SIDE, device="cuda", **options)


def matrices(cuda: Any) -> int:
    """Whole matrices that the card holds."""
    return int(cuda.allocator.allocated_bytes // MIB)


def peak_of(cuda: Any, run: Callable[[], object]) -> float:
    """Matrices at the most while it runs, above those from before."""
    before = cuda.allocator.allocated_bytes
    cuda.allocator.reset_peak()
    run()
    return float((cuda.allocator.stats.allocated_bytes.peak - before) / MIB)


def test_a_graph_is_let_go_node_by_node() -> None:
    """Tensors that a node saved go when it has run: of five products' operands, never all beside two gradients."""
    with device() as cuda:
        x = matrix(requires_grad=True)
        y = x
        for _ in range(5):
            y = y.sin()
        assert matrices(cuda) == 6
        total = y.sum()
        del y
        assert peak_of(cuda, total.backward) == pytest.approx(2, abs=0.01)  # a gradient, and a node's own
        assert matrices(cuda) == 2
        assert x.grad is not None
        assert x.grad.device == x.device


def test_a_graph_that_is_kept_can_run_again() -> None:
    """Gradients add up in place: nothing is more afterwards than after the first pass."""
    with device() as cuda:
        x = matrix(requires_grad=True)
        total = x.sin().sum()
        total.backward(retain_graph=True)
        after = cuda.allocator.allocated_bytes
        total.backward()
        assert cuda.allocator.allocated_bytes == after


def _two_ways(x: Tensor, hook: Callable[[Tensor], object] | None) -> Tensor:
    y = x * 1.0
    first = y * 2.0
    second = y.clone()
    if hook is not None:
        second.register_hook(hook)
    return (first + second * 3.0).sum()


def test_gradients_of_one_tensor_are_added_up_in_place_unless_somebody_has_the_first() -> None:
    """As autograd does on a card, where it does not for fake tensors; a hook that keeps a gradient costs its sum."""
    peaks, kept = [], list[Tensor]()
    for hook in (None, kept.append):
        with device() as cuda:
            total = _two_ways(matrix(requires_grad=True), hook)
            peaks.append(peak_of(cuda, total.backward))
            kept.clear()
    assert peaks[1] - peaks[0] == 1


def test_sums_of_a_formula_are_not_in_place() -> None:
    """The backward pass of a product under create_graph adds out of place, and its own graph runs."""
    with device() as cuda:
        x = matrix(requires_grad=True)
        (gradient,) = torch.autograd.grad(x.sin().pow(2).sum(), x, create_graph=True)
        gradient.sum().backward()
        del gradient
        assert x.grad is not None
        assert matrices(cuda) == 2


INDEX = torch.zeros(SIDE, SIDE, dtype=torch.int64)
# Matrices at the peak of a backward pass from a given gradient, with the gradient that stays.
FORMULAS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "gather": (lambda x: x.gather(0, INDEX.to("cuda")), 1),
    "index_select": (lambda x: x.index_select(0, INDEX[0].to("cuda")), 1),
    "largest of rows": (lambda x: x.max(0).values, 1),
    "largest of all": (lambda x: x.max(), 2 + 1 / 2),  # masks of two, the quotients of one; a matrix is the gradient
    "loss of logits": (lambda x: F.binary_cross_entropy_with_logits(x, x.detach(), reduction="sum"), 1),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_write_into_what_they_have_made(name: str) -> None:
    """As on a card, where C++ copies it for subclasses of tensors alone, as fake ones are."""
    function, peak = FORMULAS[name]
    with device() as cuda:
        y = function(matrix(requires_grad=True))
        gradient = torch.ones_like(y)
        assert peak_of(cuda, lambda: y.backward(gradient)) == pytest.approx(peak, abs=0.02)


def test_a_single_number_s_gradient_that_the_caller_has_is_copied() -> None:
    """The engine seems to move it between devices; that must not give the leaf the caller's own memory."""
    with device() as cuda:
        x = torch.zeros((), device="cuda", requires_grad=True)
        gradient, y = torch.ones((), device="cuda"), x + 1
        before = cuda.allocator.allocated_bytes
        y.backward(gradient)
        assert cuda.allocator.allocated_bytes - before == 512


PRODUCTS: dict[str, Callable[[], Tensor]] = {
    "prod": lambda: matrix(requires_grad=True).prod(),
    "prod of rows": lambda: matrix(requires_grad=True).prod(1),
    "prod of one number": lambda: torch.ones(1, device="cuda", requires_grad=True).prod(),
    "prod of one row": lambda: (torch.ones(1, 5, device="cuda", requires_grad=True) * 2).prod(0, keepdim=True),
    "prod, kept elsewhere": lambda: _kept_in_main_memory(torch.ones(1, device="cuda", requires_grad=True)),
    "cumprod": lambda: matrix(requires_grad=True).cumprod(0),
}


def _kept_in_main_memory(x: Tensor) -> Tensor:
    with graph.save_on_cpu():
        return x.prod(0, keepdim=True)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_whose_formula_depends_on_zeros_are_refused(name: str) -> None:
    """A card has one for values that are not 0, and others for those that are; the refusal names a way out."""
    with device(), pytest.raises(NotImplementedError, match="use sums of logarithms"):
        PRODUCTS[name]().sum().backward()


# Shape of the factors, dimension, and requested bytes at the peak from a gradient that is given, as PyTorch's own CUDA
# code has them on the stub driver: a number's gradient; else how many zeros a row has and their sum, or where they are.
PRODUCTS_WITHOUT_ZEROS = {
    "a number": ((), None, 4),
    "no factor": ((0,), None, 771),
    "no factor in a row": ((0, 5), 0, 48),
    "no factor in a row, counted from the end": ((3, 0, 700), -2, 3 * 700 * 8 + 8),
    "no row": ((0, 5), 1, 8),
}


@pytest.mark.parametrize("name", PRODUCTS_WITHOUT_ZEROS)
def test_a_product_that_can_t_have_a_zero_looks_for_it(name: str) -> None:
    """As a card does, which does not so for fake tensors."""
    shape, dim, peak = PRODUCTS_WITHOUT_ZEROS[name]
    with SimulatedCuda("H100") as cuda:
        x = torch.ones(shape, device="cuda", requires_grad=True)
        y = x.prod() if dim is None else x.prod(dim, keepdim=True)
        gradient = torch.ones_like(y)
        before = cuda.allocator.requested_bytes
        cuda.allocator.reset_peak()
        y.backward(gradient)
        assert cuda.allocator.stats.requested_bytes.peak - before == peak


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_that_are_set_to_none_go(to_none: bool) -> None:
    """And those set to zero stay."""
    with device() as cuda:
        layer = nn.Linear(SIDE, SIDE, bias=False, device="cuda")
        optimizer = torch.optim.SGD(layer.parameters(), 0.1)
        layer(matrix()).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=to_none)
        assert matrices(cuda) == (1 if to_none else 2)


def test_gradients_are_accumulated_over_steps_in_place() -> None:
    """Three passes hold what one does."""
    with device() as cuda:
        layer = nn.Linear(SIDE, SIDE, bias=False, device="cuda")
        held = []
        for _ in range(3):
            layer(matrix()).sum().backward()
            held.append(matrices(cuda))
        assert held == [2, 2, 2]


# Matrices a weight at the peak of a first step, above weights and gradients, and those that stay: two moments. For all
# weights (a list) there is a root besides; one by one a root, its quotient, and the quotient of the weight before.
STATE: dict[str, tuple[Callable[[list[nn.Parameter]], torch.optim.Optimizer], float, float]] = {
    "AdamW": (lambda weights: torch.optim.AdamW(weights), 3, 2),
    "AdamW, one by one": (lambda weights: torch.optim.AdamW(weights, foreach=False), 2 + 3 / 4, 2),
    "AdamW, fused": (lambda weights: torch.optim.AdamW(weights, fused=True), 2, 2),
    "SGD": (lambda weights: torch.optim.SGD(weights, 0.1), 0, 0),
    "SGD, fused": (lambda weights: torch.optim.SGD(weights, 0.1, fused=True), 0, 0),
    "SGD with momentum": (lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9), 1, 1),
}


@pytest.mark.parametrize("name", STATE)
def test_an_optimizer_takes_what_its_kind_on_a_card_does(name: str) -> None:
    """Lists (foreach) by default."""
    make, peak, stays = STATE[name]
    with device() as cuda:
        weights = [nn.Parameter(matrix()) for _ in range(4)]
        for weight in weights:
            weight.grad = matrix()
        optimizer = make(weights)
        before = matrices(cuda)
        assert peak_of(cuda, optimizer.step) / 4 == pytest.approx(peak, abs=0.01)
        assert (matrices(cuda) - before) / 4 == stays


@pytest.mark.parametrize(("foreach", "expected"), [(False, [607200, 0, 6]), (True, [602000, 0, 4])])
def test_adafactor_takes_what_it_does_on_a_card_whatever_norms_it_reads(foreach: bool, expected: list[int]) -> None:
    """Figures are those of PyTorch's CUDA code without a card; that the norms are assumed is said."""
    with device("H100") as cuda, cuda.remarking() as remarks:
        layer = torch.nn.Linear(300, 500, device="cuda")
        optimizer = torch.optim.Adafactor(layer.parameters(), foreach=foreach)
        layer(torch.ones(9, 300, device="cuda")).sum().backward()
        optimizer.step()
        assert figures(optimizer.step) == expected
    (line,) = remarks.lines(0)
    assert line.startswith("assumed: norms that an optimizer divides by are 1, first at ")


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints_keep_their_inputs_alone(reentrant: bool) -> None:
    """Both kinds; the block is run again inside of the backward pass."""
    with device() as cuda:
        x = matrix(requires_grad=True)

        def block(y: Tensor) -> Tensor:
            return y.sin().cos().sin().cos()

        y = checkpoint(block, checkpoint(block, x, use_reentrant=reentrant), use_reentrant=reentrant)
        assert matrices(cuda) == 3
        y.sum().backward()
        assert x.grad is not None


def test_a_gradient_scaler_takes_gradients_for_finite() -> None:
    """It reads whether they are, before the optimizer's step, which so takes place."""
    with device() as cuda:
        layer = nn.Linear(SIDE, SIDE, bias=False, device="cuda")
        optimizer, scaler = torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9), torch.amp.GradScaler("cuda")
        with torch.autocast("cuda", torch.float16):
            loss = layer(matrix()).sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        del loss
        assert matrices(cuda) == 3  # the weight, its gradient, its momentum


def test_the_thread_of_autograd_has_a_workspace_of_its_own() -> None:
    """On a card it has another cuBLAS handle: 8,519,680 B at the first product of a backward pass, and no more."""
    with device(cublas_workspace=True) as cuda:
        layer, held = nn.Linear(8, 8, bias=False, device="cuda"), []
        for _ in range(2):
            y = layer(torch.ones(8, 8, device="cuda", requires_grad=True)).sum()
            held.append(cuda.allocator.allocated_bytes)
            y.backward()
            held.append(cuda.allocator.allocated_bytes)
    assert held[1] - held[0] > 8_519_680 > held[3] - held[2]


def test_a_backward_pass_that_does_not_fit_ends_in_cuda_s_words() -> None:
    """And lets go of what it had made, so that a smaller one fits."""
    with device(cublas_workspace=False) as cuda:
        cuda.allocator.allowed_bytes = 12 * MIB
        x = matrix(requires_grad=True)
        y = x.sin().cos().sin()
        kept = [matrix() for _ in range(7)]
        with pytest.raises(torch.OutOfMemoryError, match=r"Tried to allocate 2\.00 MiB"):
            y.sum().backward()
        del y
        kept.clear()
        assert matrices(cuda) == 1


def test_autocast_inside_of_a_backward_pass_inside_of_autocast_is_refused() -> None:
    """On a card autograd's thread casts anew what the calling thread has cast already."""
    with device(), torch.autocast("cuda", torch.bfloat16):
        x = matrix(requires_grad=True)
        y = checkpoint(nn.Linear(SIDE, SIDE, device="cuda"), x, use_reentrant=False)
        with pytest.raises(NotImplementedError, match=r"call backward\(\) after the `with torch\.autocast` block"):
            y.sum().backward()


def test_a_scalar_of_the_cpu_has_its_gradient_there() -> None:
    """The engine moves gradients of single numbers to where the number is."""
    with device():
        factor = torch.tensor(2.0, requires_grad=True)
        x = matrix(requires_grad=True)
        (x * factor).sum().backward()
        assert factor.grad is not None
        assert x.grad is not None
        assert (factor.grad.device.type, x.grad.device.type) == ("cpu", "cuda")


def test_a_torch_with_cuda_and_without_a_gpu_runs_no_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its engine asks for the GPU; the refusal names the build that does not."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with device(), pytest.raises(NotImplementedError, match="install the CPU's build of torch"):
        matrix(requires_grad=True).sum().backward()


def test_a_backward_pass_on_another_stream_is_refused() -> None:
    """Each node would run on the stream of its forward pass; a new simulation has no such nodes."""
    with device():
        total = matrix(requires_grad=True).sum()
        stream = torch.cuda.stream(torch.cuda.Stream())
        with stream, pytest.raises(NotImplementedError, match="train on the default stream"):
            total.backward()
    with device():
        with torch.cuda.stream(torch.cuda.Stream()):
            total = matrix(requires_grad=True).sum()
        with pytest.raises(NotImplementedError, match="train on the default stream"):
            total.backward()
    with device():
        torch.cuda.Stream()
        matrix(requires_grad=True).sum().backward()


def test_streams_beside_a_graph_change_no_backward_pass() -> None:
    """Data may be copied on a stream of its own; the requests that follow are those without, on the default one."""

    def requests(stream: Callable[[], AbstractContextManager[object]]) -> list[tuple[int, int]]:
        sizes: list[tuple[int, int]] = []
        with device() as cuda:
            weight = matrix(requires_grad=True)
            with stream():
                x = torch.ones(weight.shape).to("cuda") * 2
            cuda.allocator.observer = lambda action, block: sizes.append(
                (block.requested, block.stream) if block else (0, 0)
            )
            (weight @ x).relu().sum().backward()
            cuda.allocator.observer = None
        return sizes

    beside = requests(lambda: torch.cuda.stream(torch.cuda.Stream()))
    assert beside
    assert beside == requests(nullcontext)
