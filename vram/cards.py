"""GPUs to forecast for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vram.units import format_bytes, parse_bytes

_CONTEXT_BYTES = 500 * 2**20  # a CUDA context with PyTorch's kernels takes 300 to 600 MiB; nothing of it is PyTorch's
_ASSUMED_CAPABILITY, _ASSUMED_MULTIPROCESSORS = (8, 0), 108  # an A100's


@dataclass(frozen=True)
class Card:
    """A GPU: its bytes, its compute capability, and how much of it the CUDA context of one process takes.

    Kernels share out their work by the number of multiprocessors, which so decides their scratch memory.
    `total_bytes` is `torch.cuda.get_device_properties().total_memory`: less than the nominal size and than NVML's
    figure, as ECC and the driver take some, and a little different from driver to driver.
    """

    name: str
    total_bytes: int
    compute_capability: tuple[int, int] = _ASSUMED_CAPABILITY
    context_bytes: int = _CONTEXT_BYTES
    multiprocessors: int = _ASSUMED_MULTIPROCESSORS

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.name} ({format_bytes(self.total_bytes)}, compute capability {major}.{minor})"


# One line a card, from the smallest to the largest. Bytes as public logs of `total_memory` or CUDA's deviceQuery have
# them, but for two: the A10's are those of out-of-memory messages (to 0.01 GiB, and also of the A10G); the A800, an
# A100 with slower links, is taken for one. Multiprocessors from NVIDIA's data sheets; the H100 and H200 are SXM boards.
CARDS = (
    Card("V100-16", 16_935_682_048, (7, 0), multiprocessors=80),
    Card("L4", 23_580_639_232, (8, 9), multiprocessors=58),
    Card("A10", round(22.06 * 2**30), (8, 6), multiprocessors=72),
    Card("RTX 4090", 25_386_352_640, (8, 9), multiprocessors=128),
    Card("RTX 3090", 25_438_126_080, (8, 6), multiprocessors=82),
    Card("V100-32", 34_079_899_648, (7, 0), multiprocessors=80),
    Card("A100-40", 42_298_834_944, (8, 0)),
    Card("L40S", 47_576_711_168, (8, 9), multiprocessors=142),
    Card("H100", 85_017_624_576, (9, 0), multiprocessors=132),
    Card("A100-80", 85_093_777_408, (8, 0)),
    Card("A800", 85_093_777_408, (8, 0)),
    Card("H200", 150_110_011_392, (9, 0), multiprocessors=132),
)


def find_card(name: str) -> Card:
    """The card called `name` ("A100-80", "a100 80GB", "RTX 3090", or as torch names it), or a size as one ("24GiB").

    A size is a card of just so many bytes, of compute capability 8.0. Raises ValueError, with the list.
    """
    for card in CARDS if name.isascii() else ():
        if _goes_by(card, _plain(name)):
            return card
    # Rounded: a capacity read off a message, "23.69 GiB", is no whole number of bytes.
    size = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([KMGT]iB)\s*", name)
    total_bytes = round(float(size[1]) * parse_bytes(f"1 {size[2]}")) if size else 0
    if total_bytes <= _CONTEXT_BYTES:
        known = ", ".join(card.name for card in CARDS)
        raise ValueError(
            f"a card must be one of {known}, or a size above {format_bytes(_CONTEXT_BYTES)} as in 24GiB, got {name!r}"
        )
    return Card(re.sub(r"\s", "", name), total_bytes)


def smallest_that_fits(n_bytes: int) -> Card | None:
    """The smallest listed card with room for `n_bytes` of segments beside the context; None where there is none."""
    fitting = [card for card in CARDS if card.total_bytes - card.context_bytes >= n_bytes]
    return min(fitting, key=lambda card: card.total_bytes, default=None)


def _goes_by(card: Card, plain: str) -> bool:
    """Whether a plain name is the card's, alone or with its nominal size: ECC and the driver take up to a tenth."""
    own = _plain(card.name)
    nominal_gb = re.fullmatch("[1-9][0-9]{0,2}", plain.removeprefix(own))
    sized = nominal_gb is not None and 0.9 <= card.total_bytes / 2**30 / int(nominal_gb[0]) <= 1
    return plain == own or (plain.startswith(own) and sized)


def _plain(name: str) -> str:
    """ "NVIDIA A100-SXM4-80GB" -> "a10080"."""
    plain = re.sub(r"nvidia|geforce|tesla|rtx|sxm\d?|pcie|hbm\d?e?|[^a-z0-9]", "", name.lower())
    return re.sub(r"gi?b$", "", plain)
