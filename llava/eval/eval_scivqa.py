"""Answer ScienceQA questions with LLaVA, plainly or with HiMAP."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from llava.eval.command_line import Program
from llava.eval.program import run_program

PROGRAM = Program(
    "eval-scivqa",
    "Answer ScienceQA questions with LLaVA, plainly or with HiMAP token pruning.",
    default_mode="baseline",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code (see `run_program`)."""
    return run_program(PROGRAM, argv)


if __name__ == "__main__":
    sys.exit(main())
