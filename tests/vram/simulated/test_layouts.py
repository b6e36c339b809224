"""Results are laid out in memory as on a card: what copies them later, and who keeps them, depends on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (as everybody calls it)

from tests.vram.simulated.devices import device

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def weight(*sizes: int, last: bool = False, **options: Any) -> Tensor:
    made = torch.zeros(*sizes, device="cuda", **options)
    return (made.to(memory_format=LAST[len(sizes)]) if last else made).requires_grad_()


def picture(channels: int, *sizes: int) -> Tensor:
    """Two pictures with their channels last."""
    made = torch.zeros(2, channels, *sizes, device="cuda")
    return made.to(memory_format=LAST[made.dim()]).requires_grad_()


@pytest.mark.parametrize("channels", [2, 16])
@pytest.mark.parametrize(("mode", "sizes"), [("bilinear", (9, 11)), ("trilinear", (5, 9, 11))])
def test_an_interpolated_picture_has_its_channels_last_where_its_source_has(
    mode: str, sizes: tuple[int, ...], channels: int
) -> None:
    """However few they are, and its gradient too; as PyTorch's own CUDA code of 2.11 and 2.13 has them without a card.
    A source with its channels first has a result so."""
    with device():
        for source, given in (
            (picture(channels, *sizes), LAST[2 + len(sizes)]),
            (weight(2, channels, *sizes), torch.contiguous_format),
        ):
            result = F.interpolate(source, size=(5,) * len(sizes), mode=mode)
            (gradient,) = torch.autograd.grad(result.square().sum(), source)
            assert result.is_contiguous(memory_format=given)
            assert gradient.is_contiguous(memory_format=given)


def test_a_convolution_has_its_channels_last_where_an_operand_has() -> None:
    """Either of them, but for float64. A single position has its channels last by its strides."""
    with device():
        x, plain = picture(3, 9, 11), torch.zeros(2, 3, 9, 11, device="cuda")
        assert F.conv2d(x, weight(8, 3, 3, 3)).stride() == (504, 1, 72, 8)
        assert F.conv2d(plain, weight(8, 3, 3, 3, last=True)).stride() == (504, 1, 72, 8)
        assert F.conv2d(plain, weight(8, 3, 3, 3)).stride() == (504, 63, 9, 1)
        assert F.conv2d(x.double(), weight(8, 3, 3, 3, dtype=torch.float64)).stride() == (504, 63, 9, 1)
        assert F.conv2d(F.adaptive_avg_pool2d(x, 1), weight(8, 3, 1, 1)).stride() == (8, 1, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_expanded_operand_has_no_say_in_the_order_of_dimensions(dtype: torch.dtype) -> None:
    """Fake tensors cast it in half precision, or where the other is of another type; then it is a dense one."""
    with device():
        x = picture(3, 9, 11).detach().to(dtype)
        ones, mask = (torch.ones((), dtype=each, device="cuda").expand(x.shape) for each in (dtype, torch.bool))
        for result in (ones * x, x * ones, mask * x, ones - x, ones / x, torch.add(mask, x)):
            assert result.stride() == x.stride()


# Peaks of the forward and the backward pass above what was there, and what stays, as PyTorch's own CUDA code of 2.13
# has them on the properties of an H100, without a card, by `python -m benchmarks.cardless`.
OF_PICTURES: dict[str, tuple[Callable[[Tensor], Tensor], list[int]]] = {
    "a weight with its channels first": (lambda x: F.conv2d(x, weight(8, 6, 3, 3), weight(8)), [8704, 19456, 14848]),
    "a weight with its channels last": (
        lambda x: F.conv2d(x, weight(8, 6, 3, 3, last=True), weight(8)),
        [6656, 19456, 14848],
    ),
    "a picture with its channels first": (
        lambda x: F.conv2d(x.contiguous(), weight(8, 6, 3, 3, last=True), weight(8)),
        [16896, 29184, 14848],
    ),
    "half precision": (
        lambda x: F.conv2d(x.half(), weight(8, 6, 3, 3, dtype=torch.half), weight(8, dtype=torch.half)),
        [7168, 13824, 10752],
    ),
    "transposed": (lambda x: F.conv_transpose2d(x, weight(6, 4, 2, 2), weight(4), stride=2), [14336, 40448, 20480]),
    "by channels": (lambda x: F.conv2d(x, weight(6, 1, 3, 3), groups=6), [3584, 13312, 9728]),
    "a cast": (lambda x: x.half(), [2560, 11264, 8192]),
    "maxima": (lambda x: F.adaptive_max_pool2d(x, 2), [7168, 13824, 6144]),
    "reflected": (lambda x: F.pad(x, (1, 1, 2, 2), mode="reflect"), [13312, 25600, 13824]),
    "antialiased": (lambda x: F.interpolate(x, size=5, mode="bilinear", antialias=True), [8192, 10752, 7168]),
    "taken apart": (lambda x: F.pixel_unshuffle(x[:, :, :8, :10], 2), [4096, 15360, 9728]),
}
OF_VOLUMES: dict[str, tuple[Callable[[Tensor], Tensor], list[int]]] = {
    "convolved": (lambda x: F.conv3d(x, weight(8, 6, 3, 3, 3), weight(8)), [15872, 33280, 27136]),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), [172032, 253952, 91648]),
    "nearest-exact": (lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"), [172032, 253952, 91648]),
    "means": (lambda x: F.avg_pool3d(x, 2), [11264, 22528, 11776]),
    "means of any size": (lambda x: F.adaptive_avg_pool3d(x, 2), [10752, 22016, 11264]),
    "maxima of any size": (lambda x: F.adaptive_max_pool3d(x, 2), [11776, 22016, 11264]),
    "reflected": (lambda x: F.pad(x, (1,) * 6, mode="reflect"), [34816, 74752, 35328]),
}


@pytest.mark.parametrize(
    ("sizes", "run", "figures"),
    [
        pytest.param(sizes, run, figures, id=f"{name}, {len(sizes)}")
        for sizes, table in (((9, 11), OF_PICTURES), ((5, 6, 7), OF_VOLUMES))
        for name, (run, figures) in table.items()
    ],
)
def test_what_is_made_of_channels_last_needs_what_it_does_on_a_card(
    sizes: tuple[int, ...], run: Callable[[Tensor], Tensor], figures: list[int]
) -> None:
    """Copies for kernels that read and write contiguous memory alone, and none where a gradient has its place."""
    with device("H100"):
        x = picture(6, *sizes)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        made = run(x)
        forward_peak = torch.cuda.max_memory_allocated() - before
        loss = (made * made).sum()
        torch.cuda.reset_peak_memory_stats()
        loss.backward()
        backward_peak = torch.cuda.max_memory_allocated() - before
        assert [forward_peak, backward_peak, torch.cuda.memory_allocated() - before] == figures
