"""Builds the runtime, runs both sides, prints where they differ, and writes the evidence.

After `--`: what Python shall run on it instead, as `-m pytest -p benchmarks.cardless.plugin --vram-device cuda`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from benchmarks.cardless import evidence
from benchmarks.cardless.building import build
from vram.cards import Card, find_card

_RUNTIME, _CARD = "LD_PRELOAD", "CARDLESS"


def card_text(card: Card) -> str:
    """The card, as runtime.c reads it. Raises RuntimeError where this torch has no kernels for it."""
    if torch.version.cuda is None:
        raise RuntimeError("cardless: needs a torch that was built with CUDA")
    major, minor = card.compute_capability
    built = [int(arch.removeprefix("sm_")) for arch in torch._C._cuda_getArchFlags().split() if arch.startswith("sm_")]
    fitting = [arch for arch in built if arch // 10 == major and arch <= 10 * major + minor]
    if not fitting:
        raise RuntimeError(f"cardless: torch {torch.__version__} has no kernels for {card}")
    parts = (card.total_bytes, card.context_bytes, major, minor, card.multiprocessors, max(fitting), card.name)
    return ",".join(map(str, parts))


def main() -> int:
    """The exit code of the comparison; 2 where it can't be built."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.cardless", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--card", default="H200")
    parser.add_argument("--model", default="7b")
    parser.add_argument("--output-folder", type=Path, default=Path("ci/evidence"))
    parser.add_argument("instead", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    card = find_card(options.card)
    if _CARD in os.environ:
        from benchmarks.cardless.comparison import compare  # late: the process that starts this one needs no models

        compare(card, options.model, evidence.path_of(options.output_folder, "cardless", card))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        try:
            text = card_text(card)
            libraries = build(Path(folder))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 2
        environment = os.environ | {_RUNTIME: ":".join(map(str, libraries)), _CARD: text}
        command = [sys.executable, *(options.instead or ["-m", "benchmarks.cardless", *sys.argv[1:]])]
        return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
