"""GPUs to forecast for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from vram.units import format_bytes, parse_bytes

_MIB = 2**20
_CONTEXT_BYTES = 500 * _MIB  # a CUDA context with PyTorch's kernels takes 300 to 600 MiB; nothing of it is PyTorch's
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


# One line a card, from the smallest to the largest, as Linux has them (on Windows a GeForce has its nominal size).
# Bytes as public logs of `total_memory` or CUDA's deviceQuery have them. Whole MiB are as torch prints a card's
# properties, up to 1 MiB less, or as Ultralytics prints its first line, rounded; of several drivers, the latest. The
# A10's are those of out-of-memory messages (to 0.01 GiB); the A800, an A100 with slower links, is taken for one.
# Multiprocessors from the same logs or NVIDIA's data sheets; the H100 and H200 are SXM boards.
CARDS = (
    Card("RTX 4060 Ti", 7_806 * _MIB, (8, 9), multiprocessors=34),
    Card("RTX 4060", 7_807 * _MIB, (8, 9), multiprocessors=24),
    Card("RTX 3060 Ti", 7_833 * _MIB, (8, 6), multiprocessors=38),
    Card("RTX 3070", 7_842 * _MIB, (8, 6), multiprocessors=46),
    Card("RTX 3080", 10_002 * _MIB, (8, 6), multiprocessors=68),
    Card("RTX 2080 Ti", 11_012 * _MIB, (7, 5), multiprocessors=68),
    Card("RTX 3080 Ti", 12_489_195_520, (8, 6), multiprocessors=80),
    Card("RTX 3060", 11_931 * _MIB, (8, 6), multiprocessors=28),
    Card("RTX 4070", 12_002 * _MIB, (8, 9), multiprocessors=46),
    Card("RTX 4070 Ti", 12_007 * _MIB, (8, 9), multiprocessors=60),
    Card("T4", 15_095 * _MIB, (7, 5), multiprocessors=40),
    Card("RTX 5080", 15_840 * _MIB, (12, 0), multiprocessors=84),
    Card("RTX 4070 Ti SUPER", 15_934 * _MIB, (8, 9), multiprocessors=66),
    Card("RTX 4080", 16_049 * _MIB, (8, 9), multiprocessors=76),
    Card("RTX A4000", 16_117 * _MIB, (8, 6), multiprocessors=48),
    Card("V100-16", 16_935_682_048, (7, 0), multiprocessors=80),
    Card("P100", 16_280 * _MIB, (6, 0), multiprocessors=56),
    Card("L4", 23_580_639_232, (8, 9), multiprocessors=58),
    Card("A10G", 22_587 * _MIB, (8, 6), multiprocessors=80),
    Card("A10", round(22.06 * 2**30), (8, 6), multiprocessors=72),
    Card("RTX A5000", 24_114 * _MIB, (8, 6), multiprocessors=64),
    Card("RTX 3090 Ti", 24_114 * _MIB, (8, 6), multiprocessors=84),
    Card("RTX 4090", 25_386_352_640, (8, 9), multiprocessors=128),
    Card("RTX 3090", 25_438_126_080, (8, 6), multiprocessors=82),
    Card("RTX 5090", 32_102 * _MIB, (12, 0), multiprocessors=170),
    Card("V100-32", 34_079_899_648, (7, 0), multiprocessors=80),
    Card("A100-40", 42_298_834_944, (8, 0)),
    Card("L40S", 47_576_711_168, (8, 9), multiprocessors=142),
    Card("A40", 45_416 * _MIB, (8, 6), multiprocessors=84),
    Card("RTX 6000 Ada", 48_520 * _MIB, (8, 9), multiprocessors=142),
    Card("RTX A6000", 48_676 * _MIB, (8, 6), multiprocessors=84),
    Card("H100", 85_017_624_576, (9, 0), multiprocessors=132),
    Card("A100-80", 85_093_777_408, (8, 0)),
    Card("A800", 85_093_777_408, (8, 0)),
    Card("RTX PRO 6000", 97_250 * _MIB, (12, 0), multiprocessors=188),
    Card("H200", 150_110_011_392, (9, 0), multiprocessors=132),
    Card("B200", 182_631 * _MIB, (10, 0), multiprocessors=148),
)


def find_card(name: str) -> Card:
    """The card called `name` ("A100-80", "a100 80GB", "RTX 3090", or as torch names it), or a size as one ("24GiB").

    A size is a card of just so many bytes, of compute capability 8.0 or the one after it ("15GiB:7.5"). Raises
    ValueError, with the nearest ones and the list.
    """
    for card in CARDS if name.isascii() else ():
        if _goes_by(card, _plain(name)):
            return card
    # Rounded: a capacity read off a message, "23.69 GiB", is no whole number of bytes.
    size = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([KMGT]iB)\s*(?::\s*([0-9]{1,2})\.([0-9])\s*)?", name)
    total_bytes = round(float(size[1]) * parse_bytes(f"1 {size[2]}")) if size else 0
    if size is None or total_bytes <= _CONTEXT_BYTES:
        known, nearest = ", ".join(card.name for card in CARDS), _nearest(name)
        hint = f" (nearest: {', '.join(nearest)})" if nearest else ""
        raise ValueError(
            f"a card must be one of {known}, or a size above {format_bytes(_CONTEXT_BYTES)} as in 24GiB, or with a "
            f"compute capability as in 15GiB:7.5, got {name!r}{hint}"
        )
    capability = (int(size[3]), int(size[4])) if size[3] else _ASSUMED_CAPABILITY
    return Card(re.sub(r"\s", "", name), total_bytes, capability)


def _nearest(name: str) -> list[str]:
    """Cards and sizes that may be meant: the sizes of a card, a size in binary units and its cards, names alike."""
    size = re.fullmatch(r"\s*([1-9][0-9]{0,2})\s*(?:GB?)?\s*", name, re.IGNORECASE | re.ASCII)
    if size:
        cards = [card.name for card in CARDS if 0.9 <= card.total_bytes / 2**30 / int(size[1]) <= 1]
        return [f"{size[1]}GiB", *cards]
    plain = _plain(name)
    names = {_plain(card.name): card.name for card in CARDS}
    beginning = [listed for own, listed in names.items() if plain and own.startswith(plain)]
    return beginning or [names[own] for own in get_close_matches(plain, names, n=3)]


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
    """ "NVIDIA A100-SXM4-80GB" -> "a10080". An H100 for PCIe is another card than the listed one."""
    family = r"nvidia|geforce|tesla|rtx|generation|blackwell|(server|workstation) edition"
    plain = re.sub(rf"{family}|sxm\d?|(?<!h100 )pcie|hbm\d?e?|[^a-z0-9]", "", name.lower())
    return re.sub(r"gi?b$", "", plain)
