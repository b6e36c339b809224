"""Sizes as text and back."""

from __future__ import annotations

import pytest

from vram import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("48 MiB", 48 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("0 B", 0),
        (" 2 KiB ", 2048),
        (7, 7),
        (0, 0),
        ("9007199254740993 B", 2**53 + 1),
        ("0.25 KiB", 256),
        ("0.5 KiB", 512),
    ],
)
def test_a_size_is_read_in_binary_units(text: str | int, n_bytes: int) -> None:
    """A number with a binary unit, or an int, means exactly those bytes."""
    assert parse_bytes(text) == n_bytes


def test_the_units_are_listed() -> None:
    """The figure that would have been read."""
    with pytest.raises(ValueError, match="one of B, KiB, MiB, GiB, TiB, as in \"48 MiB\", got '1 KB'"):
        parse_bytes("1 KB")


@pytest.mark.parametrize(
    "text", ["100 KBx", "1 MB", "MiB", "", "-1 MiB", "1 mib", "1,5 GiB", "0.3 B", "0.15 KiB", -1, True, 1.5, None]
)
def test_a_size_that_cannot_be_read_is_refused(text: object) -> None:
    """Decimal units, signs, fractions of a byte and other types are a ValueError that quotes what came."""
    with pytest.raises(ValueError, match="size must"):
        parse_bytes(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "between", "instead"),
    [
        ("0.1 GiB", "107,374,182 and 107,374,183", ["107374182 B", "102 MiB"]),
        ("1.3 GiB", "1,395,864,371 and 1,395,864,372", ["1395864371 B", "1331 MiB"]),
        ("0.0001GiB", "107,374 and 107,375", ["107374 B", "104 KiB"]),
        ("0.15 KiB", "153 and 154", ["153 B"]),
        ("0.3 B", "0 and 1", ["1 B"]),
    ],
)
def test_a_size_that_is_no_whole_number_of_bytes_is_told_with_its_neighbours(
    text: str, between: str, instead: list[str]
) -> None:
    """It is not rounded: what to write instead is in the message, in bytes and in the next smaller unit that fits."""
    said = " or ".join(f'"{size}"' for size in instead)
    with pytest.raises(ValueError, match=f"and '{text}' lies between {between}: say {said}$"):
        parse_bytes(text)
    assert [parse_bytes(size) for size in instead]


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1024, "1.00 KiB"), (50331648, "48.00 MiB"), (-2048, "-2.00 KiB"), (0.5, "0.5 B")],
)
def test_bytes_are_written_in_the_largest_fitting_unit(n_bytes: float, text: str) -> None:
    """The unit is the largest that keeps the number at 1 or above."""
    assert format_bytes(n_bytes) == text
