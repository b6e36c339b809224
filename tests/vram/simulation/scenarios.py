"""Series of memory in practice: one lap of 20 samples after another, 300 readings a seed.

Every scenario draws its sizes, phases and moments from the seed's generator. Arrays are of shape (LAPS, SAMPLES).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vram.recording import Int64

SAMPLES, LAPS = 20, 15
RUNS = SAMPLES * LAPS
KiB, MiB = 2**10, 2**20
Scenario = Callable[[np.random.Generator], Int64]


def _laps(by_run: Int64) -> Int64:
    return by_run.astype(np.int64).reshape(LAPS, SAMPLES)


def _runs() -> Int64:
    return np.arange(RUNS)


def _size(rng: np.random.Generator) -> int:
    return int(512 * rng.integers(1, 2048))


def _lengths(rng: np.random.Generator) -> Int64:
    """Bytes that each of the samples needs while it runs: the same in every lap."""
    return np.tile(rng.integers(100, 4000, SAMPLES) * 4 * KiB, LAPS)


def flat(rng: np.random.Generator) -> Int64:
    """Nothing happens."""
    return _laps(np.full(RUNS, _size(rng)))


def warm_up(rng: np.random.Generator) -> Int64:
    """Buffers of the first five samples, then flat."""
    return _laps(np.minimum(_runs(), 5) * _size(rng))


def one_step(rng: np.random.Generator) -> Int64:
    """A buffer made once, whenever, then flat."""
    return _laps((_runs() >= rng.integers(5, RUNS)) * _size(rng))


def two_steps(rng: np.random.Generator) -> Int64:
    """Two buffers made once each, whenever."""
    return one_step(rng) + one_step(rng)


def lru_70(rng: np.random.Generator) -> Int64:
    """An LRU cache that fills for 70 calls."""
    return _laps(np.minimum(_runs(), 70) * _size(rng))


def lru_128(rng: np.random.Generator) -> Int64:
    """`functools.lru_cache`'s default size."""
    return _laps(np.minimum(_runs(), 128) * _size(rng))


def by_content(rng: np.random.Generator) -> Int64:
    """A cache by content: filled in the first lap, hit from then on."""
    return _laps(np.cumsum(np.where(_runs() < SAMPLES, rng.integers(1, 99, RUNS) * 512, 0)))


def sorted_by_length(rng: np.random.Generator) -> Int64:
    """The peak of inputs that come shortest first."""
    return _laps(np.tile(np.sort(_lengths(rng)[:SAMPLES]), LAPS))


def lengths(rng: np.random.Generator) -> Int64:
    """The peak of inputs of different lengths."""
    return _laps(_lengths(rng))


def longest_so_far(rng: np.random.Generator) -> Int64:
    """Scratch that grows to the longest input and stays."""
    return _laps(np.maximum.accumulate(_lengths(rng)))


def gc_sawtooth(rng: np.random.Generator) -> Int64:
    """Cycles that gather until the collector runs, every 2 to 60 samples."""
    period = int(rng.integers(2, 60))
    return _laps((_runs() + rng.integers(0, period)) % period * _size(rng))


def ping_pong(rng: np.random.Generator) -> Int64:
    """Two buffers of different sizes in turn."""
    return _laps(np.where(_runs() % 2, _size(rng), _size(rng)))


def ring_buffer(rng: np.random.Generator) -> Int64:
    """The last so many results, of different lengths, are kept."""
    kept, held = int(rng.integers(2, 30)), _lengths(rng)
    return _laps(np.convolve(held, np.ones(kept, dtype=np.int64))[:RUNS])


def bounded_in_bytes(rng: np.random.Generator) -> Int64:
    """A cache of prompts that is allowed so many bytes: entries of any size come, the oldest go to make room."""
    sizes = rng.integers(100, 3000, RUNS) * 4
    allowed = int(rng.integers(20, 61)) * 6000
    held: list[int] = []
    readings = []
    for size in sizes.tolist():
        held.append(size)
        while sum(held) > allowed:
            held.pop(0)
        readings.append(sum(held))
    return _laps(np.array(readings))


def noise(rng: np.random.Generator) -> Int64:
    """Fluctuation without memory."""
    return _laps(rng.integers(0, 200, RUNS) * 512)


def handled_exception(rng: np.random.Generator) -> Int64:
    """Now and then an error keeps a sample's tensors until the next one."""
    return _laps((rng.random(RUNS) < 0.1) * _size(rng))


def reserved_decay(rng: np.random.Generator) -> Int64:
    """Segments added ever more rarely: the allocator's reserved bytes in their warm-up."""
    return _laps(np.cumsum(rng.random(RUNS) < 0.5 * np.exp(-_runs() / 10)) * 2 * MiB)


def other_process(rng: np.random.Generator) -> Int64:
    """Another process on the GPU, on and off, in device-wide figures."""
    period = int(rng.integers(4, 50))
    return _laps((_runs() // period % 2) * _size(rng) * 100)


def leak(rng: np.random.Generator) -> Int64:
    """The same bytes each sample."""
    return _laps(_runs() * _size(rng))


def smallest_leak(rng: np.random.Generator) -> Int64:
    """One block of 512 B each sample, on top of inputs of different lengths."""
    return _laps(_runs() * 512 + _lengths(rng))


def every_7th(rng: np.random.Generator) -> Int64:
    """A leak every 7th sample."""
    return _laps((_runs() + rng.integers(0, 7)) // 7 * _size(rng))


def from_60(rng: np.random.Generator) -> Int64:
    """A leak that starts at sample 60."""
    return _laps(np.maximum(_runs() - 60, 0) * _size(rng))


def after_warm_up(rng: np.random.Generator) -> Int64:
    """Warm-up of five samples with a leak under it."""
    return warm_up(rng) + leak(rng)


def error_path(rng: np.random.Generator) -> Int64:
    """A leak on the error path, which a fifth of the samples take: the same ones in every lap."""
    failing = np.tile(rng.permutation(SAMPLES) < SAMPLES // 5, LAPS)
    return _laps(np.cumsum(failing) * _size(rng))


def under_lengths(rng: np.random.Generator) -> Int64:
    """A leak beneath a peak that inputs of different lengths move by far more."""
    return _laps(_lengths(rng) + _runs() * int(512 * rng.integers(1, 64)))


def under_sawtooth(rng: np.random.Generator) -> Int64:
    """A leak beneath cycles that the collector frees every few samples."""
    size, period = _size(rng), int(rng.integers(2, 14))
    return _laps(_runs() * size + _runs() % period * size)


def by_length(rng: np.random.Generator) -> Int64:
    """A leak in proportion to each input's length: kept logits."""
    return _laps(np.cumsum(_lengths(rng)))


def three_per_cent(rng: np.random.Generator) -> Int64:
    """A leak with 3 % probability a sample."""
    return _laps(np.cumsum(rng.random(RUNS) < 0.03) * _size(rng))


BENIGN: dict[str, Scenario] = {
    "flat": flat,
    "warm-up of 5, then flat": warm_up,
    "one step, then flat": one_step,
    "two steps, then flat": two_steps,
    "LRU cache filling for 70 calls": lru_70,
    "LRU cache of 128": lru_128,
    "cache by content": by_content,
    "inputs sorted by length (peak)": sorted_by_length,
    "inputs of any length (peak)": lengths,
    "scratch as large as the longest input": longest_so_far,
    "gc sawtooth": gc_sawtooth,
    "ping-pong buffers": ping_pong,
    "ring buffer": ring_buffer,
    "cache bounded in bytes": bounded_in_bytes,
    "noise": noise,
    "handled exceptions": handled_exception,
    "reserved, warm-up decay": reserved_decay,
    "another process on the GPU (driver)": other_process,
}
LEAKS: dict[str, Scenario] = {
    "leak, same bytes each sample": leak,
    "leak of 512 B under length noise": smallest_leak,
    "leak every 7th sample": every_7th,
    "leak starting at sample 60": from_60,
    "leak after warm-up": after_warm_up,
    "leak on the error path": error_path,
    "leak under length noise (peak)": under_lengths,
    "leak under a short gc sawtooth": under_sawtooth,
    "leak by the length of the input": by_length,
    "leak with 3 % probability a sample": three_per_cent,
}
