"""Cards by name and by size."""

from __future__ import annotations

import pytest

import vram.cards
from vram.cards import CARDS, Card, find_card, smallest_that_fits
from vram.simulated.allocator import cuda_size

MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_listed_card_is_found_by_its_name(card: Card) -> None:
    """As listed, in small letters, and with spaces for dashes."""
    assert find_card(card.name) is card
    assert find_card(card.name.lower().replace("-", " ")) is card


@pytest.mark.parametrize(
    ("name", "listed"),
    [
        ("a100 80gb", "A100-80"),
        ("A100-40GB", "A100-40"),
        ("3090", "RTX 3090"),
        ("rtx4090", "RTX 4090"),
        ("A800-80", "A800"),
        ("H100 80GB", "H100"),
        # as torch.cuda.get_device_name says them
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("Tesla V100-SXM2-16GB", "V100-16"),
        ("Tesla V100-PCIE-32GB", "V100-32"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100 80GB PCIe", "A100-80"),
        ("NVIDIA A800-SXM4-80GB", "A800"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA H200", "H200"),
        ("Tesla T4", "T4"),
        ("Tesla P100-PCIE-16GB", "P100"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA GeForce RTX 3060", "RTX 3060"),
        ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060 Ti"),
        ("rtx 4070 ti super", "RTX 4070 Ti SUPER"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("A6000 48GB", "RTX A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX PRO 6000"),
        ("NVIDIA B200", "B200"),
    ],
)
def test_a_card_goes_by_other_names(name: str, listed: str) -> None:
    """The maker, the slot and the size, where they say nothing new, do not matter."""
    assert find_card(name).name == listed


@pytest.mark.parametrize(
    "name",
    [
        "A100",
        "V100",
        "A1000-40",
        "RTX 1",
        "H100 94GB",
        "NVIDIA H100 PCIe",
        "24",
        "24 GB",
        "",
        "-1GiB",
        "500MiB",
        "0 B",
        "Lgb4",
        "\u0662\u0664GiB",  # 24 in Arabic digits
        "L4\u0664",
        "9" * 400 + "GiB",
    ],
    ids=lambda name: ascii(name)[:20],
)
def test_an_unknown_card_is_refused_with_the_list(name: str) -> None:
    """One that is not listed, or in two sizes, another size of one, a decimal unit, a size that the context alone would
    fill or no float holds, and digits that are not ASCII."""
    with pytest.raises(
        ValueError, match=r"must be one of .*V100-16, .*L4, .*H200\b.*, or a size above 500.00 MiB as in 24GiB"
    ):
        find_card(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("A100", "A100-40, A100-80"),
        ("V100", "V100-16, V100-32"),
        ("24GB", "24GiB, L4, A10G, A10, RTX A5000, RTX 3090 Ti, RTX 4090, RTX 3090"),
        ("80", "80GiB, H100, A100-80, A800"),
        ("A1000-40", "A100-40"),
        ("RTX 3091", "RTX 3090, RTX 3090 Ti"),
        ("15GiB:75", ""),
        ("H1000", "H100"),
        ("NVIDIA H100 PCIe", "H100"),
    ],
)
def test_the_nearest_cards_are_named(name: str, nearest: str) -> None:
    """A card in several sizes, a decimal size, a slip of the finger."""
    with pytest.raises(ValueError, match=r"15GiB:7\.5, got") as caught:
        find_card(name)
    assert str(caught.value).partition(" (nearest: ")[2].rstrip(")").startswith(nearest)


@pytest.mark.parametrize(
    ("text", "n_bytes", "capability"),
    [
        ("15GiB:7.5", 15 * GIB, (7, 5)),
        (" 32 GiB : 12.0 ", 32 * GIB, (12, 0)),
    ],
)
def test_a_size_may_have_a_compute_capability(text: str, n_bytes: int, capability: tuple[int, int]) -> None:
    """It decides which kernels and how much workspace, and is said where the card is shown."""
    card = find_card(text)
    assert (card.total_bytes, card.compute_capability, card.name) == (n_bytes, capability, text.replace(" ", ""))
    assert str(find_card("15GiB:7.5")) == "15GiB:7.5 (15.00 GiB, compute capability 7.5)"


def test_cards_are_listed_from_the_smallest_to_the_largest() -> None:
    """Each with a name of its own."""
    assert [card.total_bytes for card in CARDS] == sorted(card.total_bytes for card in CARDS)
    assert len({card.name for card in CARDS}) == len(CARDS)


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("24GiB", 24 * GIB),
        ("12960 MiB", 12960 * MIB),
        ("501MiB", 501 * MIB),
        ("23.69 GiB", 25436943811),
        ("1.5GiB", 1536 * MIB),
    ],
)
def test_a_size_is_a_card(text: str, n_bytes: int) -> None:
    """Exactly so many bytes, of compute capability 8.0, which is said where it is shown."""
    card = find_card(text)

    assert (card.total_bytes, card.compute_capability) == (n_bytes, (8, 0))
    assert card.name == text.replace(" ", "")
    assert str(find_card("24GiB")) == "24GiB (24.00 GiB, compute capability 8.0)"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("T4", "14.74 GiB"),
        ("RTX 3060", "11.65 GiB"),
        ("V100-16", "15.77 GiB"),
        ("L4", "21.96 GiB"),
        ("A10", "22.06 GiB"),
        ("RTX 4090", "23.64 GiB"),
        ("RTX 3090", "23.69 GiB"),
        ("V100-32", "31.74 GiB"),
        ("A100-40", "39.39 GiB"),
        ("A100-80", "79.25 GiB"),
        ("H100", "79.18 GiB"),
        ("H200", "139.80 GiB"),
    ],
)
def test_capacities_are_those_of_real_messages(name: str, text: str) -> None:
    """ "GPU 0 has a total capacity of ...", as out-of-memory messages from such cards say in public reports."""
    assert cuda_size(find_card(name).total_bytes) == text


def test_the_smallest_card_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room is what the context leaves: exactly full fits, a byte more needs the next card, if there is one."""
    small, medium, large = find_card("V100-16"), find_card("L4"), find_card("H200")
    monkeypatch.setattr(vram.cards, "CARDS", (medium, large, small))
    room = small.total_bytes - small.context_bytes

    assert smallest_that_fits(0) is small
    assert smallest_that_fits(room) is small
    assert smallest_that_fits(room + 1) is medium
    assert smallest_that_fits(large.total_bytes - large.context_bytes) is large
    assert smallest_that_fits(large.total_bytes - large.context_bytes + 1) is None
