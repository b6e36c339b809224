"""A card on which traces are played: who holds the peak, and the snapshot."""

from __future__ import annotations

from vram.cards import find_card
from vram.explanation.allocations import Allocation
from vram.forecasting.playing import CardPlayer
from vram.frames import Frame
from vram.simulated.allocator import CachingAllocator
from vram.simulated.trace import Recorder, Trace

MIB = 2**20


def recorded(*requests: tuple[int, str]) -> Trace:
    """Requests of so many bytes by these lines, all of which stay."""
    allocator = CachingAllocator(2**50)
    recorder = Recorder(allocator)
    for n_bytes, line in requests:
        file, _, number = line.partition(":")
        allocator.malloc(n_bytes, tag=Allocation(n_bytes, "aten.empty", (), "", (Frame(file, int(number), ""),), 0))
    return recorder.cut()


def test_holders_of_as_many_bytes_are_in_the_order_of_their_names() -> None:
    """Whether these are one large block or several small ones."""
    player = CardPlayer(find_card("A10"), recorded((512, "setup.py:1")))
    _, holders = player.play([recorded((2 * MIB, "b.py:2"), (MIB, "a.py:3"), (MIB, "a.py:3"), (3 * MIB, "c.py:1"))])
    assert [(each.line.strip(), each.n_bytes, each.count) for each in holders] == [
        ("c.py:1", 3 * MIB, 1),
        ("a.py:3", 2 * MIB, 2),
        ("b.py:2", 2 * MIB, 1),
        ("setup.py:1", 512, 1),
    ]


def test_who_goes_on_without_names_has_no_holders_and_no_snapshot() -> None:
    player = CardPlayer(find_card("A10"), recorded((512, "setup.py:1")), logged=True)
    assert player.snapshot()["segments"]
    player.go_on_unnamed()
    plays, holders = player.play([recorded((MIB, "a.py:3"))])
    assert (plays[0].allocated_bytes, holders) == (MIB + 512, ())
    assert player.snapshot()["segments"] == []
