"""Print how often each rule calls each scenario growth, in per cent of seeds, as Markdown."""

from __future__ import annotations

import argparse

import numpy as np

from tests.vram.simulation.rules import RULES
from tests.vram.simulation.scenarios import BENIGN, LEAKS, Scenario


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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.vram.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--ratchet-only", action="store_true", help="for many seeds")
    options = parser.parse_args()
    rules = ["ratchet"] if options.ratchet_only else list(RULES)
    print("| scenario | " + " | ".join(rules) + " |\n|---|" + "---|" * len(rules))
    for title, scenarios in (("all that is benign", BENIGN), ("all leaks", LEAKS)):
        total = np.zeros(len(rules))
        for name, scenario in scenarios.items():
            counts = alarms(scenario, options.seeds, rules)
            total += counts
            print(f"| {name} | " + " | ".join(per_cent(count, options.seeds) for count in counts) + " |", flush=True)
        means = (per_cent(float(count), options.seeds * len(scenarios)) for count in total)
        print(f"| **{title}** | " + " | ".join(f"**{mean}**" for mean in means) + " |")


if __name__ == "__main__":
    main()
