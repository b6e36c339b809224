"""The ratchet rule, by hand arithmetic and by the properties it promises."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vram.simulation.chance import LEAKS_BESIDE, SATURATING
from tests.vram.simulation.rules import conclude as conclude_scenario
from vram import Verdict, judge_growth

KiB = 2**10
MiB = 2**20
Series = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]


def judged(by_run: Series, samples: int = 20, base_laps: int = 5, **options: int) -> Verdict:
    """Conclusion of a replay: laps are added as long as the rule asks for them."""
    laps: int | None = base_laps
    verdict = None
    while laps is not None:
        readings = np.asarray(by_run(np.arange(laps * samples))).reshape(laps, samples)
        verdict = judge_growth(readings, base_laps=base_laps, **options)
        laps = verdict.laps_wanted
    assert verdict is not None
    return verdict


def noise(runs: npt.NDArray[np.int64], seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, 100, 10_000)[: runs.size]


BENIGN: dict[str, tuple[Series, str]] = {
    "flat": (lambda r: 0 * r + 10 * MiB, "stable"),
    "warm-up of 5, then flat": (lambda r: np.minimum(r, 5) * MiB, "plateau"),
    "one step, then flat": (lambda r: (r >= 47) * MiB, "plateau"),
    "LRU cache filling for 70 calls": (lambda r: np.minimum(r, 70) * 4 * KiB, "plateau"),
    "LRU cache of 128": (lambda r: np.minimum(r, 128) * 4 * KiB, "plateau"),
    "inputs sorted by length": (lambda r: (r % 20) * MiB, "stable"),
    "gc sawtooth": (lambda r: (r % 13) * KiB, "stable"),
    "gc sawtooth in step with the laps": (lambda r: (r % 41) * KiB, "stable"),
    "another process, on and off": (lambda r: (r // 10 % 2) * 500 * MiB, "stable"),
    "gc sawtooth that drifts through the laps": (lambda r: (r % 19) * KiB, "stable"),
    "one step within the first lap after warm-up": (lambda r: (r >= 30) * MiB, "plateau"),
    "noise": (lambda r: noise(r) * 512, "stable"),
}
LEAKS: dict[str, Series] = {
    "the same bytes each sample": lambda r: r * 512,
    "one byte a sample": lambda r: r + 10 * MiB,
    "every 7th sample": lambda r: r // 7 * 512,
    "every 30th sample, rarer than once a lap": lambda r: r // 30 * 512,
    "from sample 60 on": lambda r: np.maximum(r - 60, 0) * 512,
    "under length noise": lambda r: noise(np.arange(20))[r % 20] * MiB + r * 512,
    "under a gc sawtooth": lambda r: r * 512 + (r % 13) * 512,
    "after warm-up": lambda r: np.minimum(r, 5) * MiB + r * 512,
}


@pytest.mark.parametrize("name", BENIGN)
def test_benign_memory_is_never_called_growth(name: str) -> None:
    """Growth that stops, repeats or only moves up and down is stable or on a plateau, however it moved."""
    series, status = BENIGN[name]
    assert judged(series).status == status


@pytest.mark.parametrize("samples", [20, 40])
@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_is_convicted(name: str, samples: int) -> None:
    """Whatever the leak's rhythm, it ends in grows."""
    assert judged(LEAKS[name], samples=samples).status == "grows"


@pytest.mark.parametrize("samples", [1, 2, 3, 7])
@pytest.mark.parametrize("name", ["the same bytes each sample", "one byte a sample", "after warm-up"])
def test_a_leak_is_convicted_on_a_short_list_too(name: str, samples: int) -> None:
    """Few samples are replayed more often; a leak in each of them ends in grows."""
    assert judged(LEAKS[name], samples=samples).status == "grows"


def by_lap(*levels: int) -> npt.NDArray[np.int64]:
    """A warm-up lap at 0, then laps of 20 samples, each at its level."""
    return np.repeat([[0], *([level] for level in levels)], 20, axis=1)


@pytest.mark.parametrize(
    ("levels", "status", "reason"),
    [
        ((0, 0, 0, 0, 0, 1, 2, 3, 4), "undecided", "4 of 5 rises needed"),
        ((0, 0, 0, 0, 1, 2, 3, 4, 5), "grows", "5 of 8 laps"),
        ((0, 1, 2, 3, 4, 5, 6, 7, 7), "grows", "7 of 8 laps"),
        ((0, 1, 2, 3, 4, 5, 6, 6, 6), "plateau", "twice the longest wait"),
        ((0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3), "grows", "3 of 13 laps"),
        ((0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2), "undecided", "2 of 3 rises needed"),
        ((0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 5, 5), "undecided", "no rise in the last 3 laps"),
        ((0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3), "undecided", "span fewer than 5 laps"),
        ((0, 800, 1200, 1400, 1500, 1550, 1575, 1588, 1594, 1597, 1599, 1600, 1601, 1602), "undecided", "slows down"),
        ((0, 800, 1200, 1400, *range(1401, 1411)), "grows", "13 of 13 laps"),
        ((0, 9, 0, 9, 0, 9, 0, 9, 0, 9, 0, 0, 1, 1), "stable", "up and down"),
    ],
)
def test_each_clause_of_the_rule_decides_at_its_edge(levels: tuple[int, ...], status: str, reason: str) -> None:
    """Number, rhythm and spread of rises, silence and slowing down: each case sits on the edge of one clause."""
    verdict = judge_growth(by_lap(*levels))
    assert (verdict.status, reason in verdict.reason) == (status, True), verdict


def test_a_rise_counts_from_the_level_counted_last() -> None:
    """Creep of 1 B a lap with a tolerance of 3 B: a rise only every fourth lap."""
    assert judge_growth(by_lap(*range(14)), tolerance_bytes=3).rises == 3


def test_beyond_a_declared_cache_only_the_excess_counts() -> None:
    """10 B declared and filled in five laps, 11 B reached in the sixth: one rise, not six."""
    verdict = judge_growth(by_lap(0, 2, 4, 6, 8, 10, 11, 11, 11), cache_budget_bytes=10)
    assert (verdict.status, verdict.rises) == ("undecided", 1)


def test_laps_that_fill_no_group_are_dropped_from_the_front() -> None:
    """21 laps of 10 samples make ten groups of two: the last lap's step is seen, the first lap is not needed."""
    readings = np.zeros((21, 10), dtype=np.int64)
    readings[-1] = 512
    assert judge_growth(readings).status == "undecided"


def test_a_short_list_warms_up_for_a_whole_group() -> None:
    """One sample, 200 laps, a step after the first: warm-up, and nothing since."""
    readings = np.full((200, 1), 512)
    readings[0] = 0
    verdict = judge_growth(readings)
    assert (verdict.status, verdict.reason) == ("plateau", "it rose during warm-up and not since")


def test_the_interval_is_students_widened_by_one_event() -> None:
    """Laps that add 20 and 40 B in turn, worked out by hand: 1.571 +- (2.447 * 10.69 * sqrt(1.5 / 7) + 20 / 7) / 20."""
    verdict = judge_growth(by_lap(0, *np.cumsum([20, 40] * 4).tolist()))
    assert verdict.bytes_per_sample == pytest.approx(1.5714, abs=1e-4)
    assert verdict.high_bytes - verdict.bytes_per_sample == pytest.approx(0.6054 + 0.1429, abs=1e-3)
    assert verdict.bytes_per_sample - verdict.low_bytes == pytest.approx(0.6054 + 0.1429, abs=1e-3)


def test_the_resolution_is_twice_the_noise_over_the_samples() -> None:
    """Ups and downs of 10 B over 20 samples: 2 B a sample must convict; a tolerance of 100 B makes it 7 B."""
    swinging = by_lap(*([0, 10] * 7))
    assert judge_growth(swinging).resolution_bytes == 2
    assert judge_growth(swinging, tolerance_bytes=100).resolution_bytes == 7


def test_strictly_monotonic_is_said_of_the_raw_series() -> None:
    """Every reading above the one before: a leak in each sample; never so of a flat series."""
    assert judge_growth(np.arange(100).reshape(5, 20)).strictly_monotonic
    assert not judge_growth(np.zeros((5, 20), dtype=np.int64)).strictly_monotonic


def test_conviction_rests_on_200_runs_at_least() -> None:
    """A first look never convicts; a list of one sample is replayed 200 times before a second."""
    uneven: Series = lambda r: r + r % 2  # noqa: E731
    first = judge_growth(uneven(np.arange(5)).reshape(5, 1))
    assert (first.status, first.laps_wanted) == ("undecided", 200)
    assert judged(uneven, samples=1).laps == 200
    assert judge_growth(np.arange(100).reshape(5, 20)).laps_wanted == 10
    assert judged(lambda r: r, samples=20).laps == 10


@pytest.mark.parametrize(("samples", "laps"), [(1, 140), (3, 47), (10, 14), (19, 8)])
def test_a_short_list_that_leaks_the_same_in_every_run_takes_140(samples: int, laps: int) -> None:
    """Series that would take 200 to 380 runs: no second look is needed where no run differs from another."""
    verdict = judged(lambda r: r * 512, samples=samples)
    assert (verdict.status, verdict.laps, verdict.exact, verdict.onset_run) == ("grows", laps, True, 0)
    assert verdict.reason == f"every sample rose by the same {512 * samples:,} B in each of {laps - 1} laps"


@pytest.mark.parametrize("samples", [1, 3, 10, 19])
@pytest.mark.parametrize("entries", [16, 64, 100, 128])
def test_a_cache_of_common_size_is_not_taken_for_a_constant_leak(samples: int, entries: int) -> None:
    """`functools.lru_cache` has 128 entries: it rises by the same bytes in each of as many runs, and then no more."""
    assert judged(lambda r: np.minimum(r, entries) * 4 * KiB, samples=samples).status == "plateau"


def test_constant_growth_counts_from_where_it_is_constant() -> None:
    """Warm-up that grows otherwise is left out; a declared cache must have been filled first."""
    assert judged(lambda r: r * 512 + (r > 0) * MiB, samples=1).laps == 141
    declared = judged(lambda r: r * 512, samples=1, cache_budget_bytes=2 * 512)
    assert (declared.status, declared.laps) == ("grows", 142)
    one_byte_off = judged(lambda r: r * 512 + (r == 100), samples=1)
    assert (one_byte_off.status, one_byte_off.laps) == ("grows", 200)


def test_constant_growth_within_the_tolerance_proves_nothing() -> None:
    """140 laps of a single sample, each 500 B more, on a channel that is read in grains of 1,000 B."""
    readings = 500 * np.arange(140).reshape(140, 1)
    assert judge_growth(readings, tolerance_bytes=499).status == "grows"
    assert judge_growth(readings, tolerance_bytes=500).status == "undecided"


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted({**SATURATING, **LEAKS_BESIDE})), st.integers(0, 2**32 - 1))
def test_growth_is_never_compatible_with_none(name: str, seed: int) -> None:
    """No verdict of growth has an interval that includes no growth."""
    verdict = conclude_scenario({**SATURATING, **LEAKS_BESIDE}[name](np.random.default_rng(seed)))
    assert verdict.status != "grows" or verdict.low_bytes > 0


def test_an_interval_that_includes_no_growth_leaves_it_undecided() -> None:
    """At the last look too, though every other condition holds: a cache of random keys that goes up and down."""
    verdict = conclude_scenario(SATURATING["LRU of 64 over 300 random keys"](np.random.default_rng(86)))
    assert (verdict.status, verdict.laps_wanted) == ("undecided", None)
    assert verdict.reason.endswith(", but the 95 % interval of its rate includes no growth")
    assert verdict.low_bytes <= 0 < verdict.bytes_per_sample


def test_nine_rare_events_are_not_compatible_with_none() -> None:
    """Student's interval of 13 laps reaches below zero where most laps have no event; that of a count does not."""
    verdict = judge_growth(by_lap(0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3))
    assert verdict.status == "grows"
    assert 0 < verdict.low_bytes < verdict.bytes_per_sample < verdict.high_bytes


def test_a_step_that_differs_from_lap_to_lap_is_said() -> None:
    """In the reason of what grows or is undecided, with the two ways out; no status but a slowing one depends on it."""
    said = "; the step differs from lap to lap: seed it, or declare a bounded cache"
    rising = by_lap(0, 1, 2, 3, 4, 5, 6, 7, 8)
    assert judge_growth(rising, repeats=False).reason == judge_growth(rising).reason + said
    assert judge_growth(rising, repeats=True) == judge_growth(rising)
    assert said not in judge_growth(by_lap(0, 1, 1, 1, 1, 1, 1, 1, 1), repeats=False).reason
    jump = by_lap(*np.cumsum([0, 10, 10, 10, 10, 100, *[10] * 8]))  # one longer input, beside a leak
    assert (judge_growth(jump).status, judge_growth(jump, repeats=False).status) == ("undecided", "grows")


def test_suspicion_that_cannot_be_followed_up_stays_undecided() -> None:
    """Five laps of a leak, with no more to come: undecided, with its reason and the laps it would take."""
    verdict = judge_growth(np.arange(100).reshape(5, 20))
    assert (verdict.status, verdict.laps_wanted) == ("undecided", 10)
    assert "more laps" in verdict.reason


def test_a_rate_is_exact_when_every_paired_difference_is_equal() -> None:
    """512 B a sample is reported as 512 B, with no interval around it."""
    verdict = judged(lambda r: r * 512)
    assert (verdict.bytes_per_sample, verdict.low_bytes, verdict.high_bytes, verdict.exact) == (512, 512, 512, True)


def test_an_uneven_rate_comes_with_an_interval_that_holds_the_truth() -> None:
    """512 B every 7th sample is 73.14 B a sample; the interval contains it and is narrower than one event in 7."""
    verdict = judged(lambda r: r // 7 * 512)
    assert not verdict.exact
    assert verdict.low_bytes < 512 / 7 < verdict.high_bytes
    assert verdict.high_bytes - verdict.low_bytes < 512 / 7


def test_the_interval_covers_a_random_leak_in_95_of_100_seeds() -> None:
    """Leaks of 512 B with 30 % probability a sample: the planted rate lies within the interval, seed after seed."""
    covered = [
        verdict.low_bytes <= 0.3 * 512 <= verdict.high_bytes
        for seed in range(200)
        if (
            verdict := judged(
                lambda r, seed=seed: np.cumsum(np.random.default_rng(seed).random(1000)[: r.size] < 0.3) * 512
            )
        ).status
        == "grows"
    ]
    assert len(covered) > 150
    assert sum(covered) / len(covered) >= 0.95


@pytest.mark.parametrize(("start", "onset"), [(0, 0), (60, 61), (33, 34)])
def test_the_onset_is_the_first_run_that_kept_something(start: int, onset: int) -> None:
    """A leak that starts late is dated to the run it started in; one from the start to run 0."""
    assert judged(lambda r: np.maximum(r - start, 0) * 512).onset_run == onset


def test_a_slowing_rise_is_not_convicted() -> None:
    """Warm-up that fades (half of the rest each lap) is no leak, though every lap rises."""
    assert judged(lambda r: (MiB * (1 - 0.5 ** (r / 20))).astype(np.int64)).status != "grows"


def test_one_sample_that_rises_alone_is_undecided() -> None:
    """A peak that only sample 3 raises, lap after lap, is neither growth all agree on nor nothing."""
    verdict = judged(lambda r: np.where(r % 20 == 3, r * 512, 0))
    assert verdict.status == "undecided"
    assert "sample 3" in verdict.reason


def test_a_declared_cache_is_tolerated_up_to_its_budget() -> None:
    """A cache that fills over 200 calls is no growth if declared; the same declared 10 entries too small is."""
    filling: Series = lambda r: np.minimum(r, 200) * 4 * KiB  # noqa: E731
    assert judged(filling).status == "grows"  # the documented limit of the rule
    declared = judged(filling, cache_budget_bytes=200 * 4 * KiB)
    assert (declared.status in ("stable", "plateau"), declared.laps) == (True, 5)
    assert judged(lambda r: r * 4 * KiB, cache_budget_bytes=20 * 4 * KiB).status == "grows"


def test_the_tolerance_is_allowed_exactly() -> None:
    """A step of the tolerance is nothing; a leak that gathers more than the tolerance each lap is convicted."""
    assert judged(lambda r: (r >= 50) * 2 * MiB, tolerance_bytes=2 * MiB).status == "stable"
    assert judged(lambda r: (r >= 50) * (2 * MiB + 1), tolerance_bytes=2 * MiB).status == "plateau"
    assert judged(lambda r: r * MiB, tolerance_bytes=2 * MiB).status == "grows"


def test_forecasts_count_samples_until_a_headroom_is_gone() -> None:
    """At exactly 512 B a sample, 1 MiB lasts 2048 samples; where nothing grows there is nothing to forecast."""
    forecast = judged(lambda r: r * 512).samples_until(MiB)
    assert forecast is not None
    assert (forecast.earliest, forecast.expected, forecast.latest) == (2048, 2048, 2048)
    assert judged(lambda r: 0 * r).samples_until(MiB) is None


def test_a_stable_verdict_says_what_it_does_not_prove() -> None:
    """100 quiet runs leave room for a leak rarer than 1 - 0.05^(1/100); without noise one byte would have shown."""
    verdict = judged(lambda r: 0 * r)
    assert verdict.rare_leak_bound == pytest.approx(0.029513, abs=1e-6)
    assert verdict.resolution_bytes == 1


@pytest.mark.parametrize(
    "series", [[1, 2, 3], [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], [[], [], []], [[1], [2]], [[[1]], [[1]], [[1]]]]
)
def test_series_of_another_form_are_refused(series: object) -> None:
    """Anything but integers (laps, samples) with three laps or more is a ValueError."""
    with pytest.raises(ValueError, match=r"series must|needs 3 laps"):
        judge_growth(series)  # type: ignore[arg-type]


def test_negative_tolerances_are_refused() -> None:
    """A tolerance below zero means nothing."""
    with pytest.raises(ValueError, match="negative"):
        judge_growth([[1], [1], [1]], tolerance_bytes=-1)


@st.composite
def full_records(draw: st.DrawFn) -> npt.NDArray[np.int64]:
    """15 laps of 20 samples of anything: a level for each position, noise, a step."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    readings = np.tile(rng.integers(0, MiB, 20), (15, 1))
    readings += rng.integers(0, draw(st.sampled_from([1, 2, 513, 65_537])), (15, 20))
    readings[draw(st.integers(0, 14)) :] += draw(st.sampled_from([0, 512, MiB]))
    return readings


def conclude(readings: npt.NDArray[np.int64]) -> Verdict:
    return judged(lambda r: readings.ravel()[: r.size])


@settings(max_examples=60, deadline=None)
@given(full_records(), st.integers(0, 2**40))
def test_adding_a_constant_changes_nothing(readings: npt.NDArray[np.int64], constant: int) -> None:
    """The verdict does not know how much memory was in use to begin with."""
    assert conclude(readings + constant) == conclude(readings)


@settings(max_examples=60, deadline=None)
@given(full_records(), st.integers(2, 1000))
def test_scaling_the_bytes_scales_the_figures(readings: npt.NDArray[np.int64], factor: int) -> None:
    """The status stays and the rate scales when every byte counts for more."""
    plain, scaled = conclude(readings), conclude(readings * factor)
    assert scaled.status == plain.status
    assert scaled.bytes_per_sample == pytest.approx(plain.bytes_per_sample * factor)


@settings(max_examples=60, deadline=None)
@given(full_records(), st.permutations(range(20)))
def test_the_order_of_samples_does_not_matter(readings: npt.NDArray[np.int64], order: list[int]) -> None:
    """Permuting the samples alike in every lap keeps the status."""
    assert conclude(readings[:, order]).status == conclude(readings).status


@settings(max_examples=100, deadline=None)
@given(full_records(), st.integers(0, 100))
def test_a_leak_at_the_stated_resolution_is_always_convicted(readings: npt.NDArray[np.int64], more: int) -> None:
    """Whatever else the channel does, a constant leak of `resolution_bytes` or more on top ends in grows."""
    resolution = judge_growth(readings).resolution_bytes
    leak = (resolution + more) * np.arange(readings.size).reshape(readings.shape)
    assert conclude(readings + leak).status == "grows"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=40), st.lists(st.integers(0, 2**40), min_size=40, max_size=40)
)
def test_what_is_constant_after_warm_up_never_alarms(levels: list[int], warm: list[int]) -> None:
    """Any level per sample, after any first lap, is stable or a plateau at the first look."""
    readings = np.array([warm[: len(levels)], *([levels] * 4)], dtype=np.int64)
    assert judge_growth(readings).status in ("stable", "plateau")


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 4096), st.integers(1, 5))
def test_more_laps_never_turn_growth_into_stability(period: int, leak: int, times: int) -> None:
    """A leak convicted once stays convicted when the same behaviour is watched for longer."""
    series = np.arange(20 * 15 * times) // period * leak
    assert judge_growth(series.reshape(-1, 20)).status == "grows"


def ring(seed: int) -> Series:
    """The last 50 buffers of a rotating log, of any size: it goes up and down for longer than a lap."""
    sizes = np.random.default_rng(seed).integers(1, 300, 10_000) * 4
    total = np.cumsum(sizes)
    return lambda r: total[r] - np.where(r >= 50, total[np.maximum(r - 50, 0)], 0)


def test_long_fluctuation_is_seldom_called_growth() -> None:
    """The last rows' minima rise by chance: nearly half of these were convicted by that alone."""
    statuses = [judged(ring(seed)).status for seed in range(100)]
    assert statuses.count("grows") <= 10
    assert statuses.count("stable") + statuses.count("plateau") >= 85


@pytest.mark.parametrize(
    "series",
    [
        lambda r: r * 100 + (r % 33) * 400,
        lambda r: r * 100 + ring(0)(r),
        lambda r: r * 4 * KiB + (r < 150) * 100 * MiB,
        lambda r: r * 4 * KiB + (r < 230) * 100 * MiB,
    ],
    ids=["saw", "ring", "something let go of half-way", "something let go of late"],
)
def test_a_leak_beside_what_comes_down_again_is_growth(series: Series) -> None:
    """Memory that is given back again and again is weighed against what stays; what is let go of once is not."""
    verdict = judged(series)
    assert verdict.status == "grows"


@pytest.mark.parametrize("a_run", [300_000, 2**20, 3 * 2**20])
def test_a_leak_within_the_tolerance_of_a_channel_grows(a_run: int) -> None:
    """Steps that are within a quantised channel's granule add up to growth, as larger ones do."""
    verdict = judge_growth(2**30 + a_run * np.arange(15 * 20).reshape(15, 20), tolerance_bytes=2**20)
    assert verdict.status == "grows", verdict.reason
