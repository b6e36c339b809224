"""Random requests to an allocator, the same for PyTorch's own and for the model of it, and what both say of them.

    python -m benchmarks.cardless --card RTX-3090 -- -m benchmarks.cardless.allocations ci/evidence/allocator.json

writes what PyTorch's own says; `tests/vram/simulated/test_allocator_settings.py` asks the model.
"""

from __future__ import annotations

import random
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.cardless.evidence import write

_MIB = 2**20
_STEPS, _SHOWN = 900, 60
_SIZES = (
    *(1, 512, 513, 100_000, _MIB - 512, _MIB, _MIB + 1, 2 * _MIB, 3 * _MIB + 77, 5 * _MIB, 9 * _MIB, 10 * _MIB - 512),
    *(10 * _MIB, 11 * _MIB, 12 * _MIB, 19 * _MIB, 20 * _MIB + 1, 21 * _MIB - 512, 25 * _MIB, 40 * _MIB, 64 * _MIB + 5),
    *(100 * _MIB, 130 * _MIB, 200 * _MIB - 3),
)


@dataclass(frozen=True)
class Scenario:
    """Settings as text, and those from half-way on; the share of the card that may be used; the seed of requests."""

    settings: str
    seed: int
    then: str | None = None
    fraction: float | None = None
    streams: int = 1


# A share, once set, stays set: last.
SCENARIOS = (
    Scenario("", 1),
    Scenario("", 2, streams=3),
    Scenario("max_split_size_mb:32", 3),
    Scenario("max_split_size_mb:64,max_non_split_rounding_mb:50", 4, streams=2),
    Scenario("roundup_power2_divisions:8", 5),
    Scenario("roundup_power2_divisions:[1:1,16:4,64:2,128:0,>:8]", 6, streams=2),
    Scenario("large_segment_size_mb:40", 7),
    Scenario("large_segment_size_mb:12,max_split_size_mb:24", 8),
    Scenario("roundup_power2_divisions:4", 12, then="large_segment_size_mb:30"),
    Scenario("max_split_size_mb:32", 13, then="max_split_size_mb:32,roundup_power2_divisions:[16:2,>:16]", streams=2),
    Scenario("", 9, fraction=0.2, streams=2),
    Scenario("garbage_collection_threshold:0.5", 10, fraction=0.2),
    Scenario("", 14, then="garbage_collection_threshold:0.4", fraction=0.2, streams=2),
    Scenario("garbage_collection_threshold:0.3,max_split_size_mb:48", 11, fraction=0.15, streams=3),
)


class Allocator(Protocol):
    """An allocator that takes the requests."""

    def set_to(self, settings: str) -> None:
        """Change the settings, as a call does."""
        ...

    def malloc(self, n_bytes: int, stream: int) -> Any:
        """A block, or the error's text."""
        ...

    def free(self, block: Any) -> None:
        """End a block."""
        ...

    def record_stream(self, block: Any, stream: int) -> None:
        """Let a stream use it."""
        ...

    def empty_cache(self) -> None:
        """Give cached segments back."""
        ...

    def reset_peaks(self) -> None:
        """Let the peaks start again."""
        ...

    def figures(self) -> dict[str, int]:
        """`torch.cuda.memory_stats`."""
        ...


def rows(allocator: Allocator, scenario: Scenario) -> Iterator[list[Any]]:
    """Every 60 requests: a checksum of all figures and errors until now, and the main figures."""
    chance, alive, checksum = random.Random(scenario.seed), [], 0  # noqa: S311
    few = chance.sample(_SIZES, 6)
    for step in range(1, _STEPS + 1):
        if step == _STEPS // 2 and scenario.then is not None:
            allocator.set_to(scenario.then)
        share, stream, said = chance.random(), chance.randrange(scenario.streams), ""
        if share < 0.01:
            allocator.empty_cache()
        elif share < 0.02:
            allocator.reset_peaks()
        elif alive and (share < 0.45 or len(alive) > 60):
            allocator.free(alive.pop(chance.randrange(len(alive))))
        elif alive and share < 0.5:
            allocator.record_stream(alive[chance.randrange(len(alive))], stream)
        else:
            kind = chance.random()
            n_bytes = chance.choice(few if kind < 0.5 else _SIZES) if kind < 0.8 else chance.randrange(1, 90 * _MIB)
            block = allocator.malloc(n_bytes, stream)
            if isinstance(block, str):
                said = block
            else:
                alive.append(block)
        figures = allocator.figures()
        checksum = zlib.crc32(f"{sorted(figures.items())} {said}".encode(), checksum)
        if step % _SHOWN == 0:
            main = ("allocated_bytes.all.current", "reserved_bytes.all.current", "reserved_bytes.all.peak")
            yield [checksum, *(figures[name] for name in main), figures["num_alloc_retries"], figures["num_ooms"]]


def compared(figures: dict[str, int]) -> dict[str, int]:
    """Figures without those that not every version of torch has."""
    return {name: figure for name, figure in figures.items() if name != "num_oom_rejections"}


def without_process(message: str) -> str:
    """An out of memory error without what NVML alone knows."""
    return re.sub(r"Including non-PyTorch .*? memory in use\. ", "", message)


class PyTorchs:
    """PyTorch's own allocator, as it is after `scenario`'s settings."""

    def __init__(self, scenario: Scenario) -> None:
        torch.cuda.empty_cache()
        # A call resets the size of splits, rounding and collecting alone; other settings that it leaves out stay.
        default = "large_segment_size_mb:20,max_non_split_rounding_mb:20,expandable_segments:False"
        self.set_to(default)
        self.set_to(scenario.settings)
        if scenario.fraction is not None:
            torch.cuda.set_per_process_memory_fraction(scenario.fraction)
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.reset_accumulated_memory_stats()
        self._streams = [torch.cuda.default_stream(), *(torch.cuda.Stream() for _ in range(scenario.streams - 1))]

    def set_to(self, settings: str) -> None:
        """As a program does."""
        torch._C._accelerator_setAllocatorSettings(settings)

    def malloc(self, n_bytes: int, stream: int) -> Any:
        """A tensor of so many bytes, or the error's text."""
        try:
            with torch.cuda.stream(self._streams[stream]):
                return torch.empty(n_bytes, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError as error:
            return without_process(str(error))

    def free(self, block: Any) -> None:
        """Let its storage end."""
        block.set_()

    def record_stream(self, block: Any, stream: int) -> None:
        """Let a stream use it."""
        block.record_stream(self._streams[stream])

    def empty_cache(self) -> None:
        """Give cached segments back."""
        torch.cuda.empty_cache()

    def reset_peaks(self) -> None:
        """Let the peaks start again."""
        torch.cuda.reset_peak_memory_stats()

    def figures(self) -> dict[str, int]:
        """All of `torch.cuda.memory_stats`."""
        return compared(torch.cuda.memory_stats())


def main() -> int:
    """Write what PyTorch's own allocator says."""
    properties = torch.cuda.get_device_properties(0)
    found = [list(rows(PyTorchs(scenario), scenario)) for scenario in SCENARIOS]
    evidence = {
        "schema": 1,
        "card_bytes": properties.total_memory,
        "free_bytes": torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved(),
        "torch": str(torch.__version__),
        "scenarios": found,
    }
    write(Path(sys.argv[1]), evidence)
    return 0


if __name__ == "__main__":
    sys.exit(main())
