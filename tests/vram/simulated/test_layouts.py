"""Results are laid out in memory as on a card: what copies them later, and who keeps them, depends on it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 (as everybody calls it)

from tests.vram.simulated.devices import device


@pytest.mark.parametrize("channels", [2, 16])
@pytest.mark.parametrize(
    ("mode", "sizes", "last"),
    [("bilinear", (9, 11), torch.channels_last), ("trilinear", (5, 9, 11), torch.channels_last_3d)],
)
def test_an_interpolated_picture_has_its_channels_last_where_its_source_has(
    mode: str, sizes: tuple[int, ...], last: torch.memory_format, channels: int
) -> None:
    """However few they are, and its gradient too; as PyTorch's own CUDA code of 2.11 and 2.13 has them without a card.
    A source with its channels first has a result so."""
    with device():
        for given in (torch.contiguous_format, last):
            source = torch.zeros(2, channels, *sizes, device="cuda").to(memory_format=given).requires_grad_()
            result = F.interpolate(source, size=(5,) * len(sizes), mode=mode)
            (gradient,) = torch.autograd.grad(result.square().sum(), source)
            assert result.is_contiguous(memory_format=given)
            assert gradient.is_contiguous(memory_format=given)
