"""Builds the runtime, runs both sides, prints where they differ, and writes the evidence."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import gpu
from benchmarks.cardless.building import build
from benchmarks.cardless.operations import measured, operations
from benchmarks.cardless.values import Values
from vram.simulated.cards import Card, find_card
from vram.simulated.context import SimulatedCuda

_RUNTIME, _CARD = "LD_PRELOAD", "CARDLESS"


def told(card: Card) -> str:
    """The card, as runtime.c reads it. Raises RuntimeError where this torch has no kernels for it."""
    major, minor = card.compute_capability
    built = [int(arch.removeprefix("sm_")) for arch in torch._C._cuda_getArchFlags().split() if arch.startswith("sm_")]
    fitting = [arch for arch in built if arch // 10 == major and arch <= 10 * major + minor]
    if not fitting:
        raise RuntimeError(f"cardless: torch {torch.__version__} has no kernels for {card}")
    parts = (card.total_bytes, card.context_bytes, major, minor, card.multiprocessors, max(fitting), card.name)
    return ",".join(map(str, parts))


def all_operations(within: Callable[[], AbstractContextManager[object]]) -> dict[str, Any]:
    found = {}
    with within(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, make in operations():
            found[name] = measured(make)
    return found


def unequal(theirs: dict[str, Any], ours: dict[str, Any]) -> list[dict[str, Any]]:
    """Operations of which the two sides differ; not those that end in an error on either."""
    return [
        {"what": name, "torch": figures, "simulated": ours[name]}
        for name, figures in theirs.items()
        if isinstance(figures, dict) and isinstance(ours[name], dict) and figures != ours[name]
    ]


def compare(card: Card, model: str, path: Path) -> None:
    def simulated() -> SimulatedCuda:
        return SimulatedCuda(card)

    started = time.monotonic()
    theirs, ours = all_operations(Values), all_operations(simulated)
    different = unequal(theirs, ours)
    both = sum(isinstance(theirs[name], dict) and isinstance(ours[name], dict) for name in theirs)
    peaks = gpu.compared(gpu.all_peaks(model, simulated), gpu.all_peaks(model, Values))
    kernels = gpu.kernels(card.compute_capability)
    evidence = {
        "schema": 1,
        "card": asdict(card),
        "environment": {
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "python": sys.version.split()[0],
        },
        "model": model,
        "peaks": peaks,
        "kernels": kernels,
        "operations": {"compared": both, "equal": both - len(different), "different": different},
    }
    for row in different:
        print(f"{row['what']}: torch {row['torch']}, simulated {row['simulated']}")
    gpu.show("peaks", peaks)
    gpu.show("kernels", kernels)
    print(f"{both - len(different)} of {both} operations equal, {time.monotonic() - started:.0f} s")
    path.write_text(json.dumps(evidence, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")


def main() -> int:
    """What the comparison returned; 2 where it can't be built."""
    parser = argparse.ArgumentParser(prog="benchmarks.cardless", description=__doc__)
    parser.add_argument("--card", default="H200")
    parser.add_argument("--model", default="7b")
    parser.add_argument("--output-folder", type=Path, default=Path("ci/evidence"))
    options = parser.parse_args()
    card = find_card(options.card)
    if _CARD in os.environ:
        name = f"cardless-{card.name}-torch{torch.__version__}".replace(" ", "-")
        compare(card, options.model, options.output_folder / f"{name}.json")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            text = told(card)
            libraries = build(Path(folder))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 2
        environment = os.environ | {_RUNTIME: ":".join(map(str, libraries)), _CARD: text}
        command = [sys.executable, "-m", "benchmarks.cardless", *sys.argv[1:]]
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
