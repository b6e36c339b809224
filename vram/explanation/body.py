"""Memory alive at the peak of work that runs once, as a test's body does: followed while it runs.

Its modules are not: hooks on them could change what the test does. So its pieces are by line of code alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vram.explanation.allocations import BEFORE, Allocation, described
from vram.explanation.categories import Categories
from vram.explanation.pieces import pieces
from vram.frames import Stacks
from vram.meters.tensor import TensorMeter
from vram.summary.breakdown import Breakdown
from vram.torch_hooks.dispatch import made_by
from vram.torch_hooks.storages import LivingStorages, has_bytes


class LinedTensorMeter(TensorMeter):
    """The meter of CPU tensors, with the same figures, which also knows what is alive at its peak and from which line.

    Costs a walk up the stack for each storage that begins. Keeps no log: only what is alive, and what was at the peak.
    """

    def __init__(self, outermost: str = "") -> None:
        """`outermost`: a part of the file names where call stacks end; those frames are the test runner's."""
        super().__init__()
        self._allocations = LivingStorages[Allocation](self._line_ended)
        self._living = self._allocations  # type: ignore[assignment]  # with a value for each storage
        self._stacks = Stacks(outermost)
        # Since the peak: ids of what began and is alive, and what has ended that was there.
        self._begun: set[int] = set()
        self._over: list[Allocation] = []

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        self._stacks.clear()

    def at_peak(self) -> list[Allocation]:
        """Allocations that were alive at the peak so far; those from before have the run BEFORE and no line."""
        with self._counting:
            return [one for one in self._allocations.values() if id(one) not in self._begun] + self._over

    def reset_peak(self) -> None:
        """Let the peak start again from what is alive now."""
        super().reset_peak()
        self._begun, self._over = set(), []

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage changed its size without an operation."""
        if storage in self._living:
            n_bytes = storage.nbytes()
            self._counted(storage, Allocation(n_bytes, "resize_", (n_bytes,), "uint8", self._stacks.here(), 0))

    def _see(
        self, storages: Sequence[torch.UntypedStorage], tensor: Any = None, func: Any = None, made: bool = False
    ) -> None:
        for storage in storages:
            if self._living.changed(storage):
                run, stack, op = (BEFORE, (), "") if func is None else (0, self._stacks.here(), made_by(func, made))
                # A subclass has code of its own, which may raise.
                with torch._C.DisableTorchFunctionSubclass():
                    allocation = described(op, tensor, storage.nbytes(), stack, run)
                self._counted(storage, allocation)

    def _counted(self, storage: torch.UntypedStorage, allocation: Allocation) -> None:
        with self._counting:
            if not self._runs or storage.device.type != "cpu" or not has_bytes(storage):
                return
            before = self._allocations.put(storage, allocation)
            if before is not None:
                self._live_bytes -= before[0]
                self._ends(before[1])
            self._live_bytes += storage.nbytes()
            self._begun.add(id(allocation))
            if self._live_bytes > self._peak_bytes:
                self.reset_peak()

    def _line_ended(self, n_bytes: int, allocation: Allocation) -> None:
        with self._counting:
            self._live_bytes -= n_bytes
            self._ends(allocation)

    def _ends(self, allocation: Allocation) -> None:
        if id(allocation) in self._begun:
            self._begun.remove(id(allocation))
        else:
            self._over.append(allocation)


def body_in_pieces(made: Sequence[Allocation], peak_bytes: int) -> Breakdown | None:
    """The peak of a body, above what was alive before it, in pieces of what it made; None where those are more, as
    where something ended meanwhile that was alive before."""
    untraced_bytes = peak_bytes - sum(one.n_bytes for one in made)
    if untraced_bytes < 0:
        return None
    found = tuple(pieces(dict(enumerate(made)), Categories(lambda _: None)))
    return Breakdown(
        None, peak_bytes, found, untraced_bytes, "what no tensor of the test has" if untraced_bytes else ""
    )
