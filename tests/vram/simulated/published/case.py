"""A figure that others measured on a card, and what the rows use to measure it on a simulated one."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vram.cards import Card
from vram.simulated.context import SimulatedCuda

GITHUB = "https://github.com/"
MIB, GIB = 2**20, 2**30
CUDA = torch.device("cuda", 0)
NO_OOM = "no out of memory"


@dataclass(frozen=True)
class Published:
    """`figure` as the source prints it; `run` returns the simulation's. `why`: the cause where they differ.

    `slow`: some seconds' work, which tests do with --full.
    """

    source: str
    gpu: str
    what: str
    figure: str
    run: Callable[[], str]
    why: str = ""
    card: Card | str = "A100-80"
    workspace: bool = True
    slow: bool = False

    @property
    def link(self) -> str:
        """The source in Markdown: a thread by its number, another page of GitHub by its repository."""
        parts = self.source.removeprefix(GITHUB).split("/")
        if not self.source.startswith(GITHUB):
            name = parts[-1].removesuffix(".html")
        elif len(parts) > 2 and parts[2] in ("issues", "pull"):
            name = f"{parts[1]}#{parts[3]}"
        else:
            name = parts[1]
        return f"[{name}]({self.source})"

    def row(self, simulated: str) -> str:
        """A line of the table in docs/simulated.md."""
        same = "equal" if simulated == self.figure else self.why
        return f"| {self.link} | {self.gpu} | {self.what} | {self.figure} | {simulated} | {same} |"

    def simulated(self) -> str:
        gc.collect(1)  # of all generations it would take longer than most rows
        with warnings.catch_warnings(), SimulatedCuda(self.card, cublas_workspace=self.workspace):
            warnings.simplefilter("ignore")
            return self.run()


def now() -> int:
    return torch.cuda.memory_allocated()


def peak() -> int:
    return torch.cuda.max_memory_allocated()


def refused(run: Callable[[], object]) -> str:
    """The size that an out of memory error says."""
    try:
        run()
    except torch.OutOfMemoryError as error:
        return str(error).split("Tried to allocate ")[1].split(". GPU")[0]
    return NO_OOM
