from __future__ import annotations

import pytest

from vram.text import aligned, apart, bytes_text, exact_text, rate_text, size_text


def test_a_figure_that_was_not_measured_is_a_dash() -> None:
    """A size, a rate and either side of a pair."""
    assert (size_text(None), rate_text(None), apart(None, 2**20)) == ("-", "-", ("-", "1.00 MiB"))
    assert apart(2**20, None) == ("1.00 MiB", "-")


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (4096, "4,096 B"), (4096.0, "4,096 B"), (512.94, "512.9 B"), (-1.5, "-1.5 B"), (2**60 + 1, None)],
)
def test_bytes_are_whole_or_to_a_tenth(n_bytes: float, text: str | None) -> None:
    """An int keeps every digit, beyond what a float holds too."""
    assert bytes_text(n_bytes) == (text or f"{2**60 + 1:,} B")


def test_a_rate_has_its_interval_where_that_is_more_than_a_point() -> None:
    """An exact rate stands alone."""
    assert rate_text(4096.0, (4096.0, 4096.0)) == rate_text(4096) == "4,096 B"
    assert rate_text(512.94, (444.4, 581.44)) == "512.9 B (444.4 to 581.4)"


def test_sizes_that_differ_never_read_alike() -> None:
    """To the byte where the unit would hide the difference."""
    assert apart(48 * 2**20, 48 * 2**20) == ("48.00 MiB", "48.00 MiB")
    assert apart(48 * 2**20 + 1, 48 * 2**20) == ("50,331,649 B", "50,331,648 B")
    assert apart(48 * 2**20 + 0.5, 48 * 2**20) == ("50,331,648.5 B", "50,331,648 B")


def test_a_small_figure_is_said_once() -> None:
    """From one KiB on, the size in its unit with the bytes beside it."""
    assert (exact_text(1023), exact_text(48 * 2**20)) == ("1,023 B", "48.00 MiB (50,331,648 B)")


def test_columns_stand_under_one_another() -> None:
    """The last column has no spaces after it."""
    assert aligned([("mode", "peak"), ("baseline", "1 B")]) == ["mode      peak", "baseline  1 B"]
