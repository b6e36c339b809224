"""Print how often each rule calls each scenario growth, in per cent of seeds, as Markdown."""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np

from tests.vram.simulation.chance import LEAKS_BESIDE, SATURATING, UNFINISHED
from tests.vram.simulation.rules import RULES, conclude
from tests.vram.simulation.scenarios import BENIGN, LEAKS, Scenario

SHORT_LISTS = (1, 2, 3, 5, 7, 10, 15, 19, 20, 30, 50)


def alarms(scenario: Scenario, seeds: int, rules: list[str]) -> list[int]:
    """In how many of the seeds each of the rules calls the scenario growth."""
    counts = [0] * len(rules)
    for seed in range(seeds):
        series = scenario(np.random.default_rng(seed))
        for index, name in enumerate(rules):
            counts[index] += RULES[name](series)
    return counts


def per_cent(count: float, seeds: int) -> str:
    text = f"{100 * count / seeds:.4g}"
    return "< 100" if text == "100" and count < seeds else text


def repeating(seeds: int, rules: list[str]) -> None:
    """The table of steps that need in every lap what they needed in the lap before."""
    print("| scenario | " + " | ".join(rules) + " |\n|---|" + "---|" * len(rules))
    for title, scenarios in (("all that is benign", BENIGN), ("all leaks", LEAKS)):
        total = np.zeros(len(rules))
        for name, scenario in scenarios.items():
            counts = alarms(scenario, seeds, rules)
            total += counts
            print(f"| {name} | " + " | ".join(per_cent(count, seeds) for count in counts) + " |", flush=True)
        means = (per_cent(float(count), seeds * len(scenarios)) for count in total)
        print(f"| **{title}** | " + " | ".join(f"**{mean}**" for mean in means) + " |")


def by_chance(seeds: int) -> None:
    """The table of steps with chance of their own, by the ratchet; last, where a replay sees that they don't repeat."""
    columns = ("grows", "undecided", "passes", "runs", "grows, peaks differ")
    print("| scenario | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name, scenario in (SATURATING | UNFINISHED | LEAKS_BESIDE).items():
        series = [scenario(np.random.default_rng(seed)) for seed in range(seeds)]
        verdicts = [conclude(one) for one in series]
        counts = Counter(verdict.status for verdict in verdicts)
        figures = (counts["grows"], counts["undecided"], counts["plateau"] + counts["stable"])
        runs = sum(verdict.laps * verdict.samples for verdict in verdicts) / seeds
        differing = sum(conclude(one, repeats=False).status == "grows" for one in series)
        cells = [*(per_cent(count, seeds) for count in figures), f"{runs:.0f}", per_cent(differing, seeds)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def by_list() -> None:
    """The table of how many runs it takes to convict a leak, by the length of the list of samples."""
    print("| samples | every run leaks the same | every run leaks, not the same |\n|---|---|---|")
    for samples in SHORT_LISTS:
        runs = np.arange(3000 * samples)
        leaks = (runs * 512, np.cumsum(np.where(runs % 2, 512, 1024)) + (runs // samples % 2) * 512)
        verdicts = [conclude(leak.reshape(-1, samples)) for leak in leaks]
        print(f"| {samples} | " + " | ".join(f"{one.laps * samples} ({one.status})" for one in verdicts) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.vram.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--ratchet-only", action="store_true", help="for many seeds")
    options = parser.parse_args()
    repeating(options.seeds, ["ratchet"] if options.ratchet_only else list(RULES))
    print()
    by_chance(options.seeds)
    print()
    by_list()


if __name__ == "__main__":
    main()
