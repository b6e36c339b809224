"""The caching allocator against a second, plain implementation: the same requests, the same figures."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.vram.simulated.reference_allocator import Full, ReferenceAllocator
from vram.simulated.allocator import Block, CachingAllocator, SimulatedOutOfMemory
from vram.simulated.allocator_figures import Stat

MIB, GIB = 2**20, 2**30
SOFTMAX_BYTES = 32 * 627**2 * 4  # one fp32 softmax of 32 heads over 627 tokens: 50,320,512 B


EDGES = [
    1, 511, 512, 513, 1024, 100_000, MIB - 512, MIB - 1, MIB, MIB + 1, 2 * MIB, 3 * MIB + 77, 5 * MIB, 9 * MIB,
    10 * MIB - 512, 10 * MIB - 511, 10 * MIB, 10 * MIB + 1, 11 * MIB - 512, 11 * MIB, 12 * MIB, 19 * MIB, 20 * MIB,
    20 * MIB + 1, SOFTMAX_BYTES,
]  # fmt: skip


class Pair:
    """The allocator and the plain one with the same requests; every answer and figure must be the same."""

    def __init__(self, capacity_bytes: int, context_bytes: int = 0, other_bytes: int = 0) -> None:
        self.ours = CachingAllocator(capacity_bytes, context_bytes, other_bytes)
        self.plain = ReferenceAllocator(capacity_bytes, context_bytes, other_bytes)
        self.first: int | None = None  # the address of our first segment
        self.alive: list[tuple[Block, tuple[int, int]]] = []
        self.refusals = 0

    def malloc(self, n_bytes: int, stream: int = 0) -> None:
        try:
            block: Block | str = self.ours.malloc(n_bytes, stream)
        except SimulatedOutOfMemory as full:
            block = full.message
        try:
            answer: tuple[int, int, int] | str = self.plain.malloc(n_bytes, stream)
        except Full as full:
            answer = str(full)
        if isinstance(block, str) or isinstance(answer, str):
            assert block == answer
            self.refusals += 1
            return
        base, offset, length = answer
        if self.first is None:
            self.first = block.address
        assert (block.address - self.first, block.size, block.requested) == (base + offset, length, n_bytes)
        self.alive.append((block, (base, offset)))

    def free(self, index: int) -> None:
        self.alive[index], self.alive[-1] = self.alive[-1], self.alive[index]
        block, (base, offset) = self.alive.pop()
        self.ours.free(block)
        self.plain.free(base, offset)

    def empty_cache(self) -> None:
        self.ours.empty_cache()
        self.plain.empty_cache()

    def reset_peak(self) -> None:
        self.ours.reset_peak()
        self.plain.reset_peak()

    def compare(self) -> None:
        ours, now = self.ours, self.plain.now
        assert now == {name: getattr(ours, name) for name in now}
        assert ours.free_bytes == self.plain.left()

    def compare_all(self) -> None:
        stats = self.ours.stats
        for name, figure in self.plain.now.items():
            assert getattr(stats, name) == Stat(figure, self.plain.peaks[name]), name
        assert (stats.alloc_retries, stats.ooms) == (self.plain.retries, self.plain.ooms)
        ours = [(block.address - (self.first or 0), block.size, block.allocated) for block in self.ours.blocks()]
        assert ours == self.plain.layout()


@pytest.mark.share(5)
@pytest.mark.parametrize("seed", range(16))
def test_the_same_as_a_plain_implementation(seed: int) -> None:
    """3,200 random operations a seed, 51,200 with --full: the same blocks, figures and errors after each of them.

    Peaks and layout too, every 40 and before each reset. Cards from roomy to always full, odd capacities too; one
    stream or three; sizes at every edge, random ones, or few that recur as a model's do.
    """
    chance = random.Random(seed)
    capacity_bytes = chance.choice([64 * MIB, 150 * MIB + 12_345, 400 * MIB, 4 * GIB])
    pair = Pair(capacity_bytes, chance.choice([0, 3 * MIB + 5]), chance.choice([0, MIB]))
    streams = chance.choice([[0], [0, 0, 0, 5, 9]])
    few = chance.sample(EDGES, 5)
    most = chance.choice([8, 20, 45])
    for step in range(3200):
        share = chance.random()
        if share < 0.004:
            pair.empty_cache()
        elif share < 0.008:
            pair.compare_all()
            pair.reset_peak()
        elif len(pair.alive) >= most or (pair.alive and share < 0.48):
            pair.free(chance.randrange(len(pair.alive)))
        else:
            kind = chance.random()
            size = (
                chance.choice(few) if kind < 0.4 else chance.choice(EDGES) if kind < 0.7 else chance.randrange(1, 2**24)
            )
            pair.malloc(size if kind < 0.95 else chance.randrange(1, 2 * MIB), chance.choice(streams))
        pair.compare()
        if step % 40 == 39:
            pair.compare_all()
    if capacity_bytes < 100 * MIB and most > 8:
        assert pair.refusals > 0  # such a card was full at times, and said so in the same words


class Machine(RuleBasedStateMachine):
    """The same comparison, steered by hypothesis, which shrinks what it finds."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair(90 * MIB + 1, 5 * MIB)

    @rule(size=st.sampled_from(EDGES) | st.integers(1, 30 * MIB), stream=st.sampled_from([0, 0, 3]))
    def malloc(self, size: int, stream: int) -> None:
        self.pair.malloc(size, stream)

    @precondition(lambda self: self.pair.alive)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self.pair.free(data.draw(st.integers(0, len(self.pair.alive) - 1)))

    @rule()
    def empty_cache(self) -> None:
        self.pair.empty_cache()

    @rule()
    def reset_peak(self) -> None:
        self.pair.reset_peak()

    @invariant()
    def same(self) -> None:
        self.pair.compare()
        self.pair.compare_all()


Machine.TestCase.settings = settings(max_examples=25, stateful_step_count=40, deadline=None, derandomize=True)
TestMachine = Machine.TestCase
