"""Where in a history a figure changed for good: which run it began with. Arithmetic on numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import median, median_high, median_low

_QUIET = 4  # runs of an exact figure taken to have been quiet before the first: one change of three runs is then seen
_NOISES = 8.0  # a step is larger than that many typical moves from run to run
_SHARE = 0.01  # a step of a noisy figure is larger than that of its level
_STANDING = 3  # a step of a noisy figure has at least so many runs after it


@dataclass(frozen=True)
class Step:
    """From the run `index` on, the figure stands at `after` or more (or less, for a fall), and did not before."""

    index: int
    before: float
    after: float


def find_steps(series: Sequence[float | None], *, exact: bool) -> list[Step]:
    """Steps of `series` (one figure a run, oldest first; None where a run did not measure it) that still stand.

    A rise stands where no later run is as low as the runs before it; a fall, where all later ones are lower than any
    level before. So up and back again is no step. A move counts where it is larger than eight times the typical one
    from run to run: slow drift is none (a comparison with the recorded base finds that), nor is noise, nor a constant.
    An exact figure that is usually quiet may step by one byte, in the newest run too; a noisy one by 1 % at least,
    three runs ago at the latest.

    "None" does not prove a constant: rises smaller than the noise, and those that were given back, are not found.
    """
    known = [(index, figure) for index, figure in enumerate(series) if figure is not None]
    figures = [figure for _, figure in known]
    if len(figures) < (2 if exact else 2 * _STANDING):
        return []
    moves = [abs(after - before) for before, after in pairwise(figures)]
    least = _NOISES * median(moves + [0.0] * (_QUIET if exact else 0))
    if not exact:
        figures = _smoothed(figures)
        least = max(least, _SHARE * abs(median(figures)))
    last = len(figures) - (1 if exact else _STANDING)
    lowest, highest = _of_the_rest(figures, min), _of_the_rest(figures, max)
    lowest_before = list(accumulate(_smoothed(figures), min))
    steps = []
    for at in range(1, last + 1):
        rise, fall = lowest[at] - lowest[at - 1], highest[at - 1] - highest[at]
        before = figures[max(0, at - 3) : at]  # by their median, as a single odd run is no level
        rose = rise > least and lowest[at] > median_high(before)
        fell = fall > least and highest[at] < min([median_low(before), *lowest_before[: at - 1][-1:]])
        if rose or fell:
            steps.append(Step(known[at][0], figures[at - 1], figures[at]))
    return steps


def _of_the_rest(figures: Sequence[float], pick: Callable[[float, float], float]) -> list[float]:
    """The lowest, or the highest, of each figure and all later ones."""
    return list(accumulate(reversed(figures), pick))[::-1]


def _smoothed(figures: Sequence[float]) -> list[float]:
    """Running median of three: a single odd run is gone. The ends stay as they are."""
    middle = [median(figures[at - 1 : at + 2]) for at in range(1, len(figures) - 1)]
    return [figures[0], *middle, figures[-1]]
