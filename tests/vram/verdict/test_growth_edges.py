"""Each number and each word of the rule, at the edge where it begins to matter. Figures are worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from vram import Verdict, judge_growth
from vram.verdict.ratchet import Ratchet


def by_lap(*levels: int, warm_up: int = 0) -> npt.NDArray[np.int64]:
    """A warm-up lap, then laps of 20 samples, each at its level."""
    return np.repeat([[warm_up], *([level] for level in levels)], 20, axis=1)


def by_run(*runs: float, laps: int, samples: int = 20) -> npt.NDArray[np.int64]:
    """Laps of readings from a list of all runs, the last of which repeats."""
    readings = [*runs, *[runs[-1]] * (laps * samples - len(runs))]
    return np.array(readings, dtype=np.int64).reshape(laps, samples)


def leak_from(run: int, rate: int, *, laps: int = 10, base: int = 0, warm_up: int = 0) -> npt.NDArray[np.int64]:
    """`rate` bytes more in every run from `run` on; `warm_up` more in all laps after the first."""
    runs = np.arange(laps * 20)
    return (base + np.maximum(runs - run + 1, 0) * rate + warm_up * (runs >= 20)).reshape(laps, 20)


# -- the reason, word for word ---------------------------------------------------------------------------------------

ALONE = by_lap(*[0] * 9)
ALONE[4:, 3] = 7  # one sample of 20 rose once, early
MOVING = by_lap(*[0] * 9)
MOVING[9, 3] = 7  # one sample of 20 rose in the last lap
WAVES = by_lap(*[0] * 14)
WAVES[2::2, :10] = 9  # half of the samples, every other lap and the last
DEEP = by_lap(*[0] * 13, 10)
DEEP[4, 0] = 10  # a fall of 10, and 10 is all that is common in the end


@pytest.mark.parametrize(
    ("readings", "status", "reason"),
    [
        (by_lap(0, 0, 0, 0), "stable", "every sample ended at its lowest level"),
        (by_lap(1, 1, 1, 1), "plateau", "it rose during warm-up and not since"),
        (by_lap(0, 0, 0, 1), "undecided", "some sample ended above its lowest level; it takes more laps to decide"),
        (ALONE, "plateau", "some samples rose once and have stayed level since"),
        (MOVING, "undecided", "it moves, and so far no growth is common to all samples"),
        (WAVES, "stable", "it moves up and down; no growth is common to all samples"),
        (
            by_lap(0, 1, 1, 1, 1, 1, 1, 1, 1),
            "plateau",
            "it rose once, then stayed level for twice the longest wait between rises",
        ),
        (
            by_lap(0, 1, 2, 2, 2, 2),
            "undecided",
            "some sample ended above its lowest level; it takes more laps to decide",
        ),
        (
            by_lap(0, 1, 2, 2, 2, 2, 2, 2, 2),
            "plateau",
            "it rose 2 times, then stayed level for twice the longest wait between rises",
        ),
        (
            by_lap(0, 0, 0, 0, 0, 0, 1, 1, 1),
            "undecided",
            "it rose once, but: 1 of 5 rises needed; the rises span fewer than 5 laps",
        ),
        (by_lap(0, 100, 110, 120, 130, 140, 150, 160, 170), "undecided", "it rose 8 times, but: it slows down"),
        (DEEP, "stable", "it moves up and down by more than what is common to all samples"),
        (by_lap(0, 1, 2, 3, 4, 5, 6, 7, 8), "grows", "it rose in 8 of 8 laps and never came back down"),
    ],
)
def test_the_reason_is_told_in_these_words(readings: npt.NDArray[np.int64], status: str, reason: str) -> None:
    """People read the reason; so it is as fixed as the status."""
    verdict = judge_growth(readings)
    assert (verdict.status, verdict.reason) == (status, reason)


def test_without_warm_up_there_is_none_to_compare_with() -> None:
    """`warmup_laps=0` judges every lap, and calls nothing a warm-up."""
    verdict = judge_growth(by_lap(0, 0, 0, 0), warmup_laps=0)
    assert (verdict.status, verdict.reason) == ("stable", "every sample ended at its lowest level")


# -- the clauses -----------------------------------------------------------------------------------------------------


def test_rises_must_span_the_base_laps() -> None:
    """Three rises in four of fourteen laps are a burst; in five, growth."""
    burst = judge_growth(by_lap(*[0] * 10, 1, 1, 2, 3))
    assert burst.reason == "it rose 3 times, but: the rises span fewer than 5 laps"
    assert judge_growth(by_lap(*[0] * 9, 1, 1, 1, 2, 3)).status == "grows"


@pytest.mark.parametrize(
    ("steps", "slows"),
    [
        ([10, 10, 10, 10, 10, 5, 5, 5, 5, 5], False),  # exactly half as fast
        ([10, 10, 10, 10, 10, 5, 5, 5, 5, 4], True),  # a byte less
        ([0, 0, 0, 0, 100, 0, 0, 0, 0, 30], True),  # the middle lap belongs to the earlier half
    ],
)
def test_slowing_down_is_less_than_half_of_before(steps: list[int], slows: bool) -> None:
    """The later half of the laps against the earlier half."""
    rows = np.cumsum([0, *steps]).reshape(-1, 1)
    assert Ratchet(rows, 0, 0).slows_down(since=0) is slows


def test_slowing_down_leaves_out_the_early_laps_at_the_third_look_only() -> None:
    """One step of 100 beside steps of 10. In the first base laps it is late warm-up; one lap later it counts."""
    early = judge_growth(by_lap(*np.cumsum([0, 10, 10, 10, 100, *[10] * 9])))
    late = judge_growth(by_lap(*np.cumsum([0, 10, 10, 10, 10, 100, *[10] * 8])))
    assert (early.status, late.status) == ("grows", "undecided")
    assert late.reason == "it rose 13 times, but: it slows down"


def test_growth_beyond_the_channel_s_own_falls_stays_undecided() -> None:
    """10 bytes down once: 20 in the end are more than that, though the lap before was not."""
    readings = by_lap(*[0] * 13, 20)
    readings[4, 0] = 10
    assert judge_growth(readings).status == "undecided"


def test_settled_asks_the_later_half_and_each_sample_for_itself() -> None:
    """A rise before the middle is over; samples at different levels are no rise."""
    rows = np.zeros((12, 2), dtype=np.int64)
    rows[5:, 0] = 100
    assert Ratchet(rows, 0, 0).settled()
    rows[6:, 0] = 200
    assert Ratchet(rows, 0, 0).settled()
    rows[7:, 0] = 300
    assert not Ratchet(rows, 0, 0).settled()


# -- the figures -----------------------------------------------------------------------------------------------------


def test_one_step_gives_a_rate_between_its_samples() -> None:
    """Two laps after warm-up, samples 10 and 30 higher: 20 a lap of two samples, give or take one such difference."""
    verdict = judge_growth([[0, 0], [0, 0], [10, 30]])
    assert (verdict.bytes_per_sample, verdict.low_bytes, verdict.high_bytes) == (10, 5 - 10, 15 + 10)
    assert not verdict.exact


@pytest.mark.parametrize(("laps", "student"), [(24, 2.086), (62, 2.0017)])
def test_many_steps_give_student_s_interval_of_as_many(laps: int, student: float) -> None:
    """Steps of 10 and 30 in turn, one sample: 97.5 % quantiles of 20 and of 58 degrees of freedom, from a table."""
    steps = np.resize([10, 30], laps - 1)
    steps[0] = 0
    verdict = judge_growth(np.cumsum([0, *steps]).reshape(-1, 1), base_laps=100)
    counted = steps[2:]  # from the lap after warm-up and the first rise on
    error = student * counted.std(ddof=1) * math.sqrt(1.5 / counted.size)
    assert verdict.high_bytes == pytest.approx(counted.mean() + error + 20 / counted.size, rel=1e-3)
    assert not verdict.exact


def test_two_steps_give_student_s_interval_of_one_degree() -> None:
    """Steps 20 and 10 a lap of two samples: mean 7.5; 12.706 x their deviation, widened by one event of 20 in 4."""
    verdict = judge_growth([[0, 0], [0, 0], [10, 30], [20, 40]])
    error = 12.706 * math.sqrt(50) * math.sqrt(1.5 / 2) / 2
    assert verdict.bytes_per_sample == 7.5
    assert verdict.low_bytes == pytest.approx(7.5 - error - 5)
    assert verdict.high_bytes == pytest.approx(7.5 + error + 5)


def test_the_same_step_everywhere_is_exact() -> None:
    """Two laps are enough to say so."""
    verdict = judge_growth([[0, 5], [0, 5], [12, 17]])
    assert (verdict.bytes_per_sample, verdict.low_bytes, verdict.high_bytes, verdict.exact) == (6, 6, 6, True)


@pytest.mark.parametrize(
    ("levels", "a_lap"),
    [
        ((10, 0, 0, 0, 0, 0, 0, 0, 0), -10 / 8),  # no rise: all laps
        ((0, 100, 110, 120, 130, 140, 150, 160, 175), 75 / 7),  # undecided: since the first rise
        ((0, 7, 9, 9, 9, 9, 9, 9, 9), 0),  # stopped: since the last one
        ((0, 0, 0, 0, 0, 0, 0, 10, 30), 15),  # too late for a rate of its own: the last three laps
    ],
)
def test_the_rate_is_of_the_laps_that_it_speaks_of(levels: tuple[int, ...], a_lap: float) -> None:
    """A verdict's rate starts where its story does."""
    assert judge_growth(by_lap(*levels)).bytes_per_sample == pytest.approx(a_lap / 20)


@pytest.mark.parametrize(
    ("rows", "since", "resolution"),
    [
        ([[100, 0]] * 5, None, 1),  # samples at different levels are no noise
        ([[0], [3], [0], [3], [0]], None, 2 * 3 + 1),
        ([[0], [103], [200], [303], [400]], 0, 2 * 3 + 1),  # 100 a lap is the trend, 3 the noise
        ([[900], [0], [103], [200], [303], [400]], 1, 2 * 3 + 1),  # and what was before it is none of it
        ([[0, 0], [3, 0], [0, 0]], None, 2 * 3 // 2 + 1),
    ],
)
def test_the_resolution_is_twice_the_noise_over_a_lap(
    rows: list[list[int]], since: int | None, resolution: int
) -> None:
    """The smallest leak that lifts a whole row above the noise of the one before, a sample."""
    assert Ratchet(np.array(rows), 0, 0).resolution_bytes(since) == resolution


GROWS = judge_growth(by_lap(0, 1, 2, 3, 4, 5, 6, 7, 8))


def test_samples_until_the_card_is_full() -> None:
    """The headroom by each end of the interval, rounded down; never where it may not grow at all."""
    forecast = replace(GROWS, bytes_per_sample=0.5, low_bytes=0.25, high_bytes=2.0).samples_until(1001)
    assert forecast is not None
    assert (forecast.earliest, forecast.expected, forecast.latest) == (500, 2002, 4004)
    for low_bytes in (0.0, -1.0):
        forecast = replace(GROWS, bytes_per_sample=0.5, low_bytes=low_bytes, high_bytes=2.0).samples_until(1001)
        assert forecast is not None
        assert forecast.latest is None


@pytest.mark.parametrize("verdict", [replace(GROWS, status="plateau"), replace(GROWS, bytes_per_sample=0.0)])
def test_what_does_not_grow_has_no_forecast(verdict: Verdict) -> None:
    """Neither a plateau with a rate, nor growth of nothing."""
    assert verdict.samples_until(1000) is None


# -- the onset -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("readings", "onset"),
    [
        (leak_from(0, 4), 0),
        (leak_from(0, 4, base=10**6), 0),
        (leak_from(90, 4), 90),
        (leak_from(90, 4, warm_up=1000), 90),  # a warm-up that takes more is not where it began
        (leak_from(22, 4, warm_up=1000), 22),
        (leak_from(21, 4, base=10**6), 21),  # nor is the level before
        (by_lap(0, 0, 0, 0, 0, 0, 0, 0, 9), 180),  # a step is where it is, whatever the rate
        (by_lap(0, 0, 9, 18, 27, 36, 45, 54, 63), 60),
        (by_lap(0, 0, 0, 9, 18, 27, 36, 45, 54), 80),
        (by_lap(0, 90, 99, 108, 117, 126, 135, 144, 153), 21),  # never before the first lap that is judged
    ],
)
def test_the_onset_is_the_run_that_growth_began_with(readings: npt.NDArray[np.int64], onset: int) -> None:
    """Counted from the paired sample of the lap before; since run 0 where the warm-up lap grew as much."""
    assert judge_growth(readings).onset_run == onset


def test_the_onset_is_told_for_samples_of_any_size() -> None:
    """Lengths of inputs cancel: every sample is compared with itself."""
    sizes = np.random.default_rng(1).integers(0, 10**6, 20)
    assert judge_growth(leak_from(90, 4) + sizes).onset_run == 90


def test_a_leak_of_less_than_a_byte_a_run_has_its_onset_too() -> None:
    """One byte in two runs, from run 90 on; and from one within the first lap that is judged."""
    for run in (90, 30):
        readings = (np.maximum(np.arange(300) - run + 2, 0) // 2).reshape(15, 20)
        assert judge_growth(readings).onset_run == pytest.approx(run, abs=2)


def test_half_of_the_growth_in_the_warm_up_lap_is_growth_since_the_start() -> None:
    """2 B a run later; the lap after warm-up is 20 B higher, which is just half of a lap's 40."""
    readings = 20 + leak_from(21, 2)
    readings[0] = 0
    assert judge_growth(readings).onset_run == 0
    readings[0] = 1
    assert judge_growth(readings).onset_run == 21


@pytest.mark.parametrize(
    ("readings", "wanted"),
    [
        (by_lap(0, 0, 0, 1), 10),
        (by_lap(0, 0, 0, 0, 0, 0, 1, 1, 1), 15),
        (by_lap(*[0] * 13, 20), None),  # the third look is the last
        (by_lap(0, 0, 0, 0), None),
        (by_lap(0, 1, 2, 3, 4, 5, 6, 7, 8), None),
    ],
)
def test_more_laps_are_asked_for_while_it_is_undecided(readings: npt.NDArray[np.int64], wanted: int | None) -> None:
    """Twice the base, then three times."""
    assert judge_growth(readings).laps_wanted == wanted


# -- the whole -------------------------------------------------------------------------------------------------------


def test_figures_beyond_a_float_s_digits_are_judged_to_the_byte() -> None:
    """2^60 B and one byte more a lap: integers all the way."""
    assert judge_growth(by_lap(0, 1, 2, 3, 4, 5, 6, 7, 8) + 2**60).status == "grows"


def test_a_short_list_is_judged_in_groups_of_laps() -> None:
    """Two samples: ten laps make a row, and warm-up leaves nine of a hundred laps' ten."""
    verdict = judge_growth(np.arange(200).reshape(100, 2))
    assert verdict.rises == 8
    assert verdict.reason == "it rose in 8 of 8 laps and never came back down"


def test_the_resolution_of_growth_is_beside_its_trend() -> None:
    """An exact leak hides nothing beside it; without one, what moves does."""
    assert judge_growth(by_lap(*range(0, 9000, 1000))).resolution_bytes == 1
    assert judge_growth(by_lap(0, 100, 0, 100, 0)).resolution_bytes == 2 * 100 // 20 + 1
    assert judge_growth(by_lap(400, 300, 200, 100, 0)).resolution_bytes == 2 * 400 // 20 + 1  # a trend down is noise


def test_too_few_laps_are_refused_with_the_number_needed() -> None:
    """Warm-up and two; a warm-up below none is refused as well."""
    with pytest.raises(ValueError, match="needs 4 laps, warm-up included, got 3"):
        judge_growth([[0], [0], [0]], warmup_laps=2)
    with pytest.raises(ValueError, match="needs 2 laps, warm-up included, got 3"):
        judge_growth([[0], [0], [0]], warmup_laps=-1)
