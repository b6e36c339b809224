"""Evidence files, and the command line of what runs on the runtime without a card."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vram.cards import Card, find_card


def begun(card: Card) -> dict[str, Any]:
    """The first keys of every file: schema, card, and the versions that it was made with."""
    environment = {
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
        "python": sys.version.split()[0],
    }
    return {"schema": 1, "card": asdict(card), "environment": environment}


def path_of(folder: Path, kind: str, card: Card) -> Path:
    """The file KIND-CARD-torchVERSION.json in `folder`."""
    return folder / f"{kind}-{card.name}-torch{torch.__version__}.json".replace(" ", "-")


def write(path: Path, evidence: dict[str, Any]) -> None:
    """Write the file, with a line for each list of figures, or of such lists."""
    text = re.sub(r"\[[\d\s,\[\]nul-]+\]", lambda figures: " ".join(figures[0].split()), json.dumps(evidence, indent=1))
    path.write_text(text + "\n", encoding="utf-8")


def write_compared(
    folder: Path, kind: str, what: str, card: Card, theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> None:
    """Write, and name, the file of a comparison by name: `what` has torch's figures, "different" both where unequal."""
    unlike = {name: {"torch": theirs[name], "simulated": ours[name]} for name in theirs if theirs[name] != ours[name]}
    path = path_of(folder, kind, card)
    write(path, begun(card) | {"different": unlike, what: theirs})
    print(f"written: {path}")


def arguments(name: str, chosen: str) -> tuple[Card, argparse.Namespace, argparse.ArgumentParser]:
    """The card of the runtime, and the arguments of `benchmarks.cardless.NAME`: `output_folder`, and those in `chosen`.

    Ends with a usage error where there is no such runtime.
    """
    parser = argparse.ArgumentParser(prog=f"benchmarks.cardless.{name}")
    parser.add_argument("--output-folder", type=Path, default=Path("ci/evidence"))
    parser.add_argument(chosen, nargs="*")
    options = parser.parse_args()
    if "CARDLESS" not in os.environ:
        parser.error(f"is for the runtime without a card: python -m benchmarks.cardless -- -m {parser.prog}")
    return find_card(os.environ["CARDLESS"].rsplit(",", 1)[1]), options, parser
