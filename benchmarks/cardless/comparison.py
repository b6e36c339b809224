"""Both sides of the comparison, PyTorch on the runtime and the simulation, and where they differ."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks import gpu
from benchmarks.cardless import evidence, models
from benchmarks.cardless.operations import Figures, measured, operations
from benchmarks.cardless.values import Values
from vram.cards import Card
from vram.simulated.context import SimulatedCuda


def all_operations(within: Callable[[], AbstractContextManager[object]]) -> dict[str, Figures | str]:
    by_name = {}
    with within(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in operations():
            by_name[name] = measured(make)
    return by_name


def step_figures(make: Callable[[], models.Step], within: Callable[[], AbstractContextManager[object]]) -> Figures:
    with within():
        return models.measured(make)


def unequal(theirs: Mapping[str, Figures | str], ours: Mapping[str, Figures | str]) -> list[str]:
    """Operations on which the two sides differ; not those that end in an error on either."""
    return [
        name
        for name, figures in theirs.items()
        if not isinstance(figures, str) and not isinstance(ours[name], str) and figures != ours[name]
    ]


def compare(card: Card, model: str, path: Path) -> None:
    """Run both sides, print where they differ, and write the evidence to `path`."""

    def simulated() -> SimulatedCuda:
        return SimulatedCuda(card)

    started = time.monotonic()
    real_peaks = gpu.all_peaks(model, Values)  # first: with an allocator that nobody has used yet
    theirs, ours = all_operations(Values), all_operations(simulated)
    different = unequal(theirs, ours)
    peaks = gpu.compared(gpu.all_peaks(model, simulated), real_peaks)
    kernels = gpu.kernels(card.compute_capability)
    steps = {
        name: {"torch": step_figures(make, Values), "simulated": step_figures(make, simulated)}
        for name, make in models.models().items()
    }
    written = evidence.begun(card) | {
        "model": model,
        "peaks": peaks,
        "kernels": kernels,
        "models": steps,
        "different": {name: {"torch": theirs[name], "simulated": ours[name]} for name in different},
        "operations": {name: figures for name, figures in theirs.items() if not isinstance(figures, str)},
    }
    show(written, sum(not isinstance(theirs[name], str) and not isinstance(ours[name], str) for name in theirs))
    evidence.write(path, written)
    print(f"written: {path}, {time.monotonic() - started:.0f} s")


def show(written: dict[str, Any], n_both: int) -> None:
    """Print where the two sides differ; `n_both`: operations that both sides answered."""
    different, peaks, steps = (written[name] for name in ("different", "peaks", "models"))
    unlike = {name: step for name, step in steps.items() if step["torch"] != step["simulated"]}
    for name, sides in different.items():
        print(f"{name}: torch {sides['torch']}, simulated {sides['simulated']}")
    gpu.show("peaks", [row for row in peaks if row["error"]])
    gpu.show("kernels", written["kernels"])
    print(f"peaks: {sum(not row['error'] for row in peaks)} of {len(peaks)} equal, {written['model']}")
    for name, sides in unlike.items():
        print(f"{name}: torch {sides['torch']}, simulated {sides['simulated']}")
    print(f"models: {len(steps) - len(unlike)} of {len(steps)} equal")
    print(f"operations: {n_both - len(different)} of {n_both} equal")
