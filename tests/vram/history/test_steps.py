"""Where a figure changed for good."""

from __future__ import annotations

import random

import pytest

from vram.history.steps import Step, find_steps


@pytest.mark.parametrize(
    ("series", "found"),
    [
        ([], []),
        ([5], []),
        ([5] * 40, []),
        ([0] * 40, []),
        ([100] * 5 + [110] * 5, [Step(5, 100, 110)]),
        ([100, 110], [Step(1, 100, 110)]),  # in the newest run
        ([100] * 9 + [101], [Step(9, 100, 101)]),  # by a byte
        ([100, 120, 100], []),  # up, then back
        ([100] * 4 + [120] * 4 + [100] * 4, []),
        ([100] * 4 + [80] + [100] * 4, []),  # down, then back
        ([80] * 4 + [100] * 4 + [60] * 4, [Step(8, 100, 60)]),
        ([100] * 4 + [60] + [100] * 3 + [80] * 4, [Step(8, 100, 80)]),
        ([100] * 4 + [80] * 4 + [100] * 4, [Step(8, 80, 100)]),  # what had been gained is lost
        ([100] * 4 + [130, 100, 110, 110], [Step(6, 100, 110)]),  # a single odd run is no level
        ([100] * 4 + [80] * 4, [Step(4, 100, 80)]),  # a fall that stands
        ([100] * 4 + [110] * 3 + [130] * 4, [Step(4, 100, 110), Step(7, 110, 130)]),
        ([0, 0, 0, 7, 7], [Step(3, 0, 7)]),  # from zero
        ([None, 100, None, 100, None, 110, None], [Step(5, 100, 110)]),  # gaps: runs that did not measure it
    ],
)
def test_a_step_is_where_a_change_that_stands_began(series: list[float | None], found: list[Step]) -> None:
    """The first run of the new level; none for a constant, or for what was given back."""
    assert find_steps(series, exact=True) == found


def test_slow_drift_and_a_step_are_one_step() -> None:
    """A byte a run for 60 runs, and 500 at once in between: that one alone."""
    series = [1000 + run + (500 if run >= 37 else 0) for run in range(60)]
    assert find_steps(series, exact=True) == [Step(37, 1036, 1537)]
    assert find_steps(series, exact=False) == [Step(37, 1036, 1537)]


def test_noise_is_no_step() -> None:
    """200 series of 100 runs, normal noise of 1 %: nothing; and a step of 20 % among it is found where it is."""
    draw = random.Random(0)
    missed = []
    for _ in range(200):
        series = [draw.gauss(1000, 10) for _ in range(100)]
        assert find_steps(series, exact=False) == []
        at = draw.randrange(10, 90)
        steps = find_steps([figure + (200 if run >= at else 0) for run, figure in enumerate(series)], exact=False)
        if [step.index for step in steps] != [at]:
            missed.append((at, steps))
    assert len(missed) <= 10, missed[:3]


def test_a_noisy_figure_steps_once_it_has_stayed() -> None:
    """Two odd runs at the end are not enough, three are; odd runs in between never are."""
    assert find_steps([100.0] * 10 + [150.0] * 2, exact=False) == []
    assert find_steps([100.0] * 10 + [150.0] * 3, exact=False) == [Step(10, 100, 150)]
    assert find_steps([100.0] * 5 + [150.0] + [100.0] * 5 + [50.0] + [100.0] * 5, exact=False) == []
