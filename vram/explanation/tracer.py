"""Tracing every allocation of a run: how large, by which operation, from which line, and whether it is alive."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from vram.explanation.allocations import (
    BEFORE,
    NOWHERE,
    Allocation,
    Event,
    Place,
    described,
    keyed_at_peak,
    unclaimed,
)
from vram.explanation.snapshot import viewer_snapshot
from vram.frames import Frame, Stacks
from vram.torch_hooks.dispatch import Following, made_by
from vram.torch_hooks.storages import LivingStorages, has_bytes, living_tensors, storages_of
from vram.torch_hooks.watchers import hooked

if TYPE_CHECKING:
    from vram.explanation.categories import Categories
    from vram.explanation.suggestions.uses import Uses
    from vram.simulated.allocator import Block
    from vram.simulated.context import SimulatedCuda

_MOST_EVENTS = 100_000  # of the snapshot's timeline; the oldest are dropped, as PyTorch's own ring buffer does


class TensorTracer:
    """Every storage on one kind of device, with the stack that made it. Used as a context manager around all runs.

    Holds storages by weak references only. Sees this thread, and threads started while it watches. Blind to what is no
    tensor's; a storage made outside PyTorch's operations (`torch.from_numpy`) is met at its first use.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        """`device`: only tensors there; without an index, on any of that type. Default: the CPU."""
        self._device = torch.device("cpu") if device is None else device
        self._living = LivingStorages[tuple[int, Allocation]](lambda _, known: self._freed(*known))
        self._stacks = Stacks()
        self._next_key = 0
        self._run = BEFORE
        self._marks: dict[str, int] = {}
        self._mark = ""  # the marks, in words
        self._start: list[tuple[int, Allocation]] = []
        self._run_events: list[Event] = []
        self.events: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self.categories: Categories | None = None  # if set, it knows where each operation runs, and is to know of it
        self.uses: Uses | None = None  # if set, it is to know what runs, and what ends

    def __enter__(self) -> Self:
        gc.collect()
        for tensor in living_tensors():
            storages = [storage for storage in storages_of(tensor) if self._living.changed(storage)]
            self._see(tensor, storages, "", frames=())
        self.events.clear()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._living.clear()
        self._stacks.clear()

    @contextmanager
    def watching(self, run: int) -> Iterator[None]:
        """Follow the operations of this thread, and of threads started meanwhile, as part of `run`."""
        self._run, self._marks, self._mark = run, {}, ""
        self._start, self._run_events = self._living.values(), []
        with hooked(self), self.following():
            yield

    def following(self) -> AbstractContextManager[object]:
        """Follow the operations of this thread alone."""
        ran = None if self.uses is None else self.uses.ran
        following: AbstractContextManager[object] = Following(self._seen, self._living.sizes, ran)
        return following

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage changed its size without an operation: the line that did it is what matters now."""
        if storage in self._living and self._living.changed(storage):
            n_bytes = storage.nbytes()
            stack = self._stacks.here()
            allocation = Allocation(
                n_bytes, "resize_", (n_bytes,), "uint8", stack, self._run, self._mark, *self._place()
            )
            self._begin(storage, allocation)

    def reached(self, mark: str) -> None:
        """The sample reached a mark (see `vram.replaying.marks.listening`)."""
        self._marks[mark] = self._marks.get(mark, -1) + 1
        self._mark = ", ".join(f"{name} {count}" for name, count in self._marks.items())

    def alive(self) -> list[Allocation]:
        """Allocations alive now that were made since the trace began, oldest first."""
        return [allocation for _, allocation in sorted(self._living.values()) if allocation.run != BEFORE]

    def alive_before(self) -> list[Allocation]:
        """Allocations alive now that were so when the trace began."""
        return [allocation for _, allocation in self._living.values() if allocation.run == BEFORE]

    def at_peak(self) -> list[Allocation]:
        """Allocations alive at the moment of most bytes in the last run."""
        return list(self.keyed_at_peak().values())

    def keyed_at_peak(self) -> dict[int, Allocation]:
        """The same, by their numbers in the trace."""
        return keyed_at_peak(self.start.items(), self.log)

    @property
    def start(self) -> Mapping[int, Allocation]:
        """Allocations that were alive when the last run began, by number."""
        return dict(self._start)

    @property
    def log(self) -> Sequence[Event]:
        """Events of the last run, and since."""
        return self._run_events

    def key_of(self, storage: torch.UntypedStorage) -> int | None:
        """The number of a living storage's allocation; None where it is not followed."""
        known = self._living.get(storage)
        return None if known is None else known[0]

    def living_storages(self) -> Iterator[tuple[torch.UntypedStorage, Allocation]]:
        """Each storage that is alive, and its allocation."""
        for storage, (_, allocation) in self._living.living():
            yield storage, allocation

    def storages(self, groups: Sequence[Sequence[Allocation]]) -> list[Any | None]:
        """One living storage (`torch.UntypedStorage`) of each group of allocations; None where none is left."""
        living = {id(allocation): storage for storage, (_, allocation) in self._living.living()}
        # Neither the first nor the last: those may be held by something that lets go of them in time.
        orders = ((group[len(group) // 2], *group) for group in groups)
        return [next((living[id(each)] for each in order if id(each) in living), None) for order in orders]

    def living(self) -> Iterator[tuple[int, Allocation]]:
        """(key, allocation) of everything alive now."""
        yield from self._living.values()

    def snapshot(self) -> dict[str, Any]:
        """The log for PyTorch's memory viewer: see `vram.explanation.snapshot`."""
        return viewer_snapshot(list(self.events), self.living())

    def snapshot_of(self, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The snapshot of the last run, as `run` makes it of a log, or the allocator's own."""
        return run()

    def _counts(self, storage: torch.UntypedStorage) -> bool:
        """A wrapper's storage has a size, and nothing behind it."""
        return has_bytes(storage)

    def _seen(self, storages: Sequence[torch.UntypedStorage], tensor: torch.Tensor, func: Any, made: bool) -> None:
        self._see(tensor, storages, made_by(func, made))

    def _see(
        self,
        tensor: torch.Tensor,
        storages: Iterable[torch.UntypedStorage],
        op: str,
        *,
        frames: tuple[Frame, ...] | None = None,
    ) -> None:
        # A subclass has code of its own, which may raise: a lazy module's parameter has no storage yet.
        with torch._C.DisableTorchFunctionSubclass():
            device = tensor.device
            if device.type != self._device.type or self._device.index not in (None, device.index):
                return
            for storage in storages:
                if storage in self._living or self._counts(storage):
                    stack = self._stacks.here() if frames is None else frames
                    made = described(op, tensor, storage.nbytes(), stack, self._run, self._mark, self._place())
                    self._begin(storage, made)

    def _begin(self, storage: torch.UntypedStorage, allocation: Allocation) -> None:
        self._next_key += 1
        before = self._living.put(storage, (self._next_key, allocation))
        if before is not None:  # resized in place: the line that did it is what matters now
            self._log("free", *before[1])
        self._log("alloc", self._next_key, allocation)
        self._categorize(self._next_key, allocation)

    def _categorize(self, key: int, allocation: Allocation) -> None:
        if self.categories is not None:
            self.categories.made(key, allocation)

    def _freed(self, key: int, allocation: Allocation) -> None:
        if self.uses is not None:
            self.uses.ended(key)
        self._log("free", key, allocation)

    def _place(self) -> Place:
        return NOWHERE if self.categories is None else self.categories.here()

    def _log(self, action: Literal["alloc", "free"], key: int, allocation: Allocation) -> None:
        event = Event(action, key, allocation)
        self.events.append(event)
        self._run_events.append(event)


class CudaTracer(TensorTracer):
    """The same on a CUDA device, with the allocator's own history beside it: what no operation was seen to make
    (a library's workspace, another thread's work) is listed too, by its line alone.

    The viewer's snapshot is the allocator's. Ends a recording of memory history that was already running.
    """

    def __init__(self, device: torch.device, *, memory: Any = None) -> None:
        """`memory` stands in for `torch.cuda.memory` in tests."""
        super().__init__(device)
        self._memory = torch.cuda.memory if memory is None else memory
        self.without_history: str | None = None

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._memory._record_memory_history("all", context="all", stacks="python", max_entries=_MOST_EVENTS)
        except (RuntimeError, TypeError) as error:  # an allocator back end without history
            self.without_history = str(error).partition("\n")[0]
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.without_history is None:
            self._memory._record_memory_history(None)
        super().__exit__(*exc_info)

    def alive(self) -> list[Allocation]:
        """Tensors' storages, then blocks of the allocator that belong to none of them."""
        tensors = super().alive()
        if self.without_history is not None:
            return tensors
        pointers = {storage.data_ptr() for storage, _ in self._living.living()}
        return tensors + unclaimed(self.snapshot(), self._device.index, pointers)

    def snapshot(self) -> dict[str, Any]:
        """The allocator's snapshot, as `torch.cuda.memory._dump_snapshot` writes it."""
        if self.without_history is not None:
            return super().snapshot()
        snapshot: dict[str, Any] = self._memory._snapshot()
        return snapshot

    def snapshot_of(self, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The allocator's snapshot."""
        return super().snapshot_of(run) if self.without_history is not None else self.snapshot()


class SimulatedTracer(TensorTracer):
    """The same on a simulated card; `watching` runs on it. A peak is that of the card's allocator, to the byte."""

    def __init__(self, cuda: SimulatedCuda, device: torch.device) -> None:
        super().__init__(device)
        self._cuda = cuda
        self._keys: dict[int, int] = {}  # numbers of allocations, by the id of a block in use
        self._next_block = 0
        self._at_start: dict[int, Allocation] = {}
        self._of_card: list[Event] = []
        self._earlier: Callable[[str, Block | None], None] | None = None  # somebody else who observes

    @contextmanager
    def watching(self, run: int) -> Iterator[None]:
        """As `TensorTracer.watching`, on the card."""
        allocator = self._cuda.allocator
        earlier = self._earlier, _ = allocator.observer, self._cuda.describe
        self._begin_run()
        allocator.observer, self._cuda.describe = self._observe, self._describe
        try:
            with self._cuda, super().watching(run):
                yield
        finally:
            allocator.observer, self._cuda.describe = earlier

    @property
    def start(self) -> Mapping[int, Allocation]:
        """As `TensorTracer.start`, of blocks."""
        return self._at_start

    @property
    def log(self) -> Sequence[Event]:
        """As `TensorTracer.log`, of blocks, and of the run alone."""
        return self._of_card

    def key_of(self, storage: torch.UntypedStorage) -> int | None:
        """As `TensorTracer.key_of`, of blocks."""
        block = self._cuda.block_of(storage)
        return None if block is None else self._keys.get(id(block))

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Name the line that took the new block, which the card took for no operation."""
        super().resized(storage)
        key, known = self.key_of(storage), self._living.get(storage)
        for index in range(len(self._of_card) - 1, -1, -1):
            event = self._of_card[index]
            if known is not None and event.key == key and event.action == "alloc":
                self._of_card[index] = event._replace(allocation=known[1])
                return

    def _begin_run(self) -> None:
        """Take up every block in use: those of tensors, and the workspaces that libraries keep."""
        tensors = {id(self._cuda.block_of(storage)): allocation for storage, (_, allocation) in self._living.living()}
        self._keys, self._at_start, self._of_card = {}, {}, []
        for block in self._cuda.allocator.blocks():
            if block.allocated:
                workspace = Allocation(block.requested, "", (), "", (), BEFORE, workspace=True)
                self._at_start[self._number(block)] = tensors.get(id(block), workspace)

    def _number(self, block: Block) -> int:
        self._next_block += 1
        self._keys[id(block)] = self._next_block
        return self._next_block

    def _observe(self, action: str, block: Block | None) -> None:
        if self._earlier is not None:
            self._earlier(action, block)
        if block is None:
            return
        if action == "free":
            key = self._keys.pop(id(block), None)
            if key is not None:
                if self.uses is not None:
                    self.uses.ended(key)
                self._of_card.append(Event("free", key, Allocation(block.requested, "", (), "", (), self._run)))
            return
        made = block.tag if isinstance(block.tag, Allocation) else None
        if made is None or self._cuda.allocator.taking_scratch or self._cuda.in_kernel:
            made = self._workspace(block.requested, made)
        key = self._number(block)
        self._of_card.append(Event("alloc", key, made))
        if self.categories is not None:
            self.categories.made(key, made)

    def _workspace(self, n_bytes: int, of: Allocation | None) -> Allocation:
        """Memory that a library took for itself: during an operation, or once for good."""
        op = "" if of is None else of.op
        frames = self._stacks.here() if of is None else of.frames
        return Allocation(
            n_bytes, op, (n_bytes,), "uint8", frames, self._run, self._mark, *self._place(), workspace=True
        )

    def _describe(self, op: str, tensor: torch.Tensor) -> Allocation:
        n_bytes = tensor.untyped_storage().nbytes()
        return described(op, tensor, n_bytes, self._stacks.here(), self._run, self._mark, self._place())

    def _categorize(self, key: int, allocation: Allocation) -> None:
        """Do nothing: the allocator reports blocks by numbers of its own."""

    def _freed(self, key: int, allocation: Allocation) -> None:
        self._log("free", key, allocation)

    def _counts(self, storage: torch.UntypedStorage) -> bool:
        """None has anything behind it here."""
        return True


def tracer_for(device: str) -> TensorTracer:
    """The tracer of a device, named as `torch.device` takes it, or "simulated:CARD"."""
    if device.startswith("simulated"):
        from vram.simulated.context import DEVICE, simulated_cuda  # late: a large package, for a simulated card alone

        return SimulatedTracer(simulated_cuda(device.partition(":")[2]), DEVICE)
    resolved = torch.device(device)
    return CudaTracer(resolved) if resolved.type == "cuda" else TensorTracer(resolved)
