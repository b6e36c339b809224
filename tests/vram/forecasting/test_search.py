"""The search for the largest size that fits: exact where more never needs less, and short where needs are on a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from vram.forecasting.search import Largest, largest


@dataclass(frozen=True)
class Needs:
    """A forecast that leaves so much of the card."""

    spare_bytes: int

    @property
    def fits(self) -> bool:
        return self.spare_bytes >= 0


ROOM = 1_000_003
NEEDS: dict[str, tuple[Callable[[int], int], int, int]] = {
    "on a line": (lambda size: 1000 + 7 * size, 142_714, 6),
    "in steps": (lambda size: -(-7 * size // 4096) * 4096, 142_774, 28),
    "squared": (lambda size: size * size, 1000, 12),
    "one fits": (lambda size: 600_000 * size, 1, 4),
    "a jump": (lambda size: 10 if size < 77 else 10**9, 76, 20),
}


@pytest.mark.parametrize("start", [1, 8, 10**6])
@pytest.mark.parametrize(("needs", "fits", "most_tries"), NEEDS.values(), ids=NEEDS)
def test_the_largest_that_fits_is_found(needs: Callable[[int], int], fits: int, most_tries: int, start: int) -> None:
    """From below and from above, and the next does not fit."""
    tries = []

    def forecast(size: int) -> Needs:
        tries.append(size)
        return Needs(ROOM - needs(size))

    assert largest(start, forecast(start), forecast) == Largest(fits, fits + 1)
    assert len(tries) == len(set(tries)) <= most_tries + 20 * (start == 10**6)


def test_where_nothing_fits_or_everything_does_the_search_ends() -> None:
    """With no size, or at the end of the search, which is said."""
    assert largest(8, Needs(-1), lambda size: Needs(-1)) == Largest(None, 1)
    assert largest(8, Needs(5), lambda size: Needs(5)) == Largest(2**24, None, "searched up to 16,777,216")


def test_a_size_that_can_t_be_forecast_ends_the_search_with_its_reason() -> None:
    """The largest that fits below it, and why there is no more: nothing is guessed."""
    found = largest(8, Needs(5), lambda size: "it raised" if size > 20 else Needs(4))
    assert found == Largest(20, None, "21: it raised")
