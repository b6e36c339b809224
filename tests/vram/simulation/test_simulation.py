"""The ratchet rule on seeded series: what it must never call growth, and what it must always."""

from __future__ import annotations

import numpy as np
import pytest

from tests.vram.simulation import chance
from tests.vram.simulation.chance import LEAKS_BESIDE, SATURATING, UNFINISHED
from tests.vram.simulation.rules import RULES, conclude, ratchet
from tests.vram.simulation.scenarios import BENIGN, LAPS, LEAKS, SAMPLES

SEEDS = range(10_000, 10_050)  # not those of the printed table
CHANCE = "leak with 3 % probability a sample"  # may not have happened often enough in 300 runs to be told from a step


@pytest.mark.parametrize("name", BENIGN)
def test_no_false_alarm(name: str) -> None:
    """Memory that stops, repeats or moves up and down is not called growth, whatever the seed."""
    alarmed = [seed for seed in SEEDS if ratchet(BENIGN[name](np.random.default_rng(seed)))]
    assert alarmed == []


@pytest.mark.parametrize("name", [name for name in LEAKS if name != CHANCE])
def test_every_leak_is_found(name: str) -> None:
    """A leak is called growth, whatever the seed."""
    missed = [seed for seed in SEEDS if not ratchet(LEAKS[name](np.random.default_rng(seed)))]
    assert missed == []


@pytest.mark.parametrize("name", SATURATING)
def test_what_fills_by_chance_is_seldom_called_growth(name: str) -> None:
    """Lengths and keys that are drawn anew in every lap: at most 1 of 50 grows, at most 6 are undecided."""
    verdicts = [conclude(SATURATING[name](np.random.default_rng(seed))) for seed in SEEDS]
    statuses = [verdict.status for verdict in verdicts]
    assert statuses.count("grows") <= 1
    assert statuses.count("undecided") <= 6


@pytest.mark.parametrize("name", UNFINISHED)
def test_what_is_still_filling_is_not_called_growth(name: str) -> None:
    """It rises to the end of the record, ever more seldom: nobody can say that it stops, or that it leaks."""
    statuses = [conclude(UNFINISHED[name](np.random.default_rng(seed))).status for seed in SEEDS]
    assert statuses.count("grows") <= 1


@pytest.mark.parametrize("name", [name for name in LEAKS_BESIDE if "random" not in name and "LRU" not in name])
def test_a_leak_beside_chance_is_found(name: str) -> None:
    """The same bytes in every run, beside scratch, buckets or caches that fill by chance, which a replay sees."""
    series = [LEAKS_BESIDE[name](np.random.default_rng(seed)) for seed in SEEDS]
    found = [seed for seed, one in zip(SEEDS, series, strict=True) if conclude(one, repeats=False).status == "grows"]
    assert len(found) >= 0.8 * len(SEEDS)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("leak at random, 15 %, of any size", 0.9),
        ("leak at random, 6 %, of any size", 0.7),
        ("leak at random, 3 %, after warm-up", 0.7),
    ],
)
def test_a_leak_at_random_is_found_by_its_pace(name: str, share: float) -> None:
    """It comes as often late as early, which nothing does that fills."""
    statuses = [conclude(LEAKS_BESIDE[name](np.random.default_rng(seed))).status for seed in SEEDS]
    assert statuses.count("grows") >= share * len(SEEDS)


@pytest.mark.parametrize("name", [*SATURATING, *UNFINISHED, *LEAKS_BESIDE])
def test_a_scenario_of_chance_is_its_seed(name: str) -> None:
    """As below, for steps of chance: no lap repeats the one before, and benign ones start low and end high."""
    scenario = (SATURATING | UNFINISHED | LEAKS_BESIDE)[name]
    first, again = (scenario(np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (chance.LAPS, chance.SAMPLES)
    assert first.dtype == np.int64
    assert (first == again).all()
    assert first[0].min() < first.max()


@pytest.mark.parametrize("name", [*BENIGN, *LEAKS])
def test_a_scenario_is_its_seed(name: str) -> None:
    """The same seed gives the same series, of integer bytes, so that a sceptic can rerun every figure."""
    scenario = (BENIGN | LEAKS)[name]
    first, again = (scenario(np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (LAPS, SAMPLES)
    assert first.dtype == np.int64
    assert (first == again).all()
    assert first.min() >= 0


@pytest.mark.parametrize(
    ("rule", "fooled_by", "blind_to"),
    [
        ("strictly monotonic", None, "leak every 7th sample"),
        ("last > first", "warm-up of 5, then flat", None),
        ("slope t-test", "LRU cache filling for 70 calls", None),
        ("Mann-Kendall + Theil-Sen", "LRU cache filling for 70 calls", None),
        ("two-window floor", "LRU cache filling for 70 calls", None),
    ],
)
def test_the_other_rules_are_what_they_are_called(rule: str, fooled_by: str | None, blind_to: str | None) -> None:
    """Each finds the plain leak, and errs where it is known to."""
    judge = RULES[rule]
    assert judge(LEAKS["leak, same bytes each sample"](np.random.default_rng(0)))
    assert not judge(BENIGN["flat"](np.random.default_rng(0)))
    if fooled_by is not None:
        assert judge(BENIGN[fooled_by](np.random.default_rng(0)))
    if blind_to is not None:
        assert not judge(LEAKS[blind_to](np.random.default_rng(0)))
