"""GPUs to forecast for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vram.units import format_bytes, parse_bytes

_GIB = 2**30
_CONTEXT_BYTES = 500 * 2**20  # a CUDA context with PyTorch's kernels takes 300 to 600 MiB; nothing of it is PyTorch's
_ASSUMED_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Card:
    """A GPU: what it has in all, its compute capability, and what the CUDA context of one process takes of it."""

    name: str
    total_bytes: int
    compute_capability: tuple[int, int] = _ASSUMED_CAPABILITY
    context_bytes: int = _CONTEXT_BYTES

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.name} ({format_bytes(self.total_bytes)}, compute capability {major}.{minor})"


def _card(name: str, gib: float, *compute_capability: int) -> Card:
    # Totals as PyTorch's out-of-memory messages tell them in public reports, to 0.01 GiB: less than the nominal size,
    # as ECC and the driver take some.
    major, minor = compute_capability
    return Card(name, round(gib * _GIB), (major, minor))


CARDS = (
    _card("V100-16", 15.77, 7, 0),
    _card("L4", 22.03, 8, 9),
    _card("A10", 22.19, 8, 6),
    _card("RTX 4090", 23.64, 8, 9),
    _card("RTX 3090", 23.69, 8, 6),
    _card("V100-32", 31.74, 7, 0),
    _card("A100-40", 39.50, 8, 0),
    _card("H100", 79.11, 9, 0),
    _card("A100-80", 79.25, 8, 0),
    _card("A800", 79.25, 8, 0),
    _card("H200", 139.80, 9, 0),
)


def find_card(name: str) -> Card:
    """The card called `name` ("A100-80", "a100 80GB", "RTX 3090"), or any size as a card ("24GiB").

    A bare size is a card of just so many bytes and of compute capability 8.0. Raises ValueError, with the list.
    """
    wanted = _plain(name)
    for card in CARDS:
        if wanted in (_plain(card.name), _plain(card.name.removeprefix("RTX "))):
            return card
    try:
        total_bytes = parse_bytes(name)
    except ValueError:
        total_bytes = 0
    if total_bytes <= _CONTEXT_BYTES:
        known = ", ".join(card.name for card in CARDS)
        raise ValueError(
            f"a card must be one of {known}, or a size above {format_bytes(_CONTEXT_BYTES)} as in 24GiB, got {name!r}"
        )
    return Card(re.sub(r"\s", "", name), total_bytes)


def smallest_that_fits(n_bytes: int) -> Card | None:
    """The smallest listed card with room for `n_bytes` of PyTorch's beside the context; None where there is none."""
    fitting = [card for card in CARDS if card.total_bytes - card.context_bytes >= n_bytes]
    return min(fitting, key=lambda card: card.total_bytes, default=None)


def _plain(name: str) -> str:
    """ "NVIDIA A100 80GB" -> "a10080"."""
    return re.sub(r"nvidia|geforce|tesla|gib|gb|[^a-z0-9]", "", name.lower())
