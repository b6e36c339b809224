"""The host's memory: read, judged with its own noise, and never deciding."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from collections.abc import Iterator
from itertools import cycle, repeat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vram
from vram.meters.host import HostMeter, unmapped_shared_bytes
from vram.meters.tensor import TensorMeter

MiB = 2**20
SHARED = Path("/dev/shm")  # noqa: S108 - where Linux keeps shared memory


class FakeProcess:
    """`psutil.Process`, whose RSS is what we say."""

    def __init__(self, rss: Iterator[int]) -> None:
        self._rss = rss

    def memory_info(self) -> SimpleNamespace:
        return SimpleNamespace(rss=next(self._rss))


def test_the_host_channel_is_the_rss_of_this_process() -> None:
    """256 MiB of touched memory that no tensor holds raise it by about as much."""
    pytest.importorskip("psutil", reason="psutil is not installed")
    with HostMeter() as meter:
        before = meter.read()["host"]
        kept = np.ones(256 * MiB, dtype=np.uint8)
        grown = meter.read()["host"] - before
    assert 192 * MiB <= grown <= kept.nbytes + 64 * MiB


@pytest.mark.parametrize(("range_mib", "tolerance_mib"), [(0, 16), (5, 16), (6, 18), (40, 120)])
def test_the_tolerance_is_16_mib_or_three_times_the_idle_range(range_mib: int, tolerance_mib: int) -> None:
    """Its noise is what the figure moves by while nothing is done."""
    with HostMeter(process=FakeProcess(cycle([500 * MiB, (500 + range_mib) * MiB]))) as meter:
        assert meter.tolerance_bytes == {"host": tolerance_mib * MiB}


def test_without_psutil_it_is_absent_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never 0; the replay goes on without it."""
    monkeypatch.setitem(sys.modules, "psutil", None)
    recording = vram.replay(lambda _: None, [0], laps=3, meters=[TensorMeter(), HostMeter()])
    assert "host" not in recording.channels
    assert recording.absent["host"] == "psutil is not installed (pip install 'himap-vram[meters]')"


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared memory is elsewhere")
def test_shared_memory_that_is_open_and_unmapped_counts() -> None:
    """As tensors in a queue that nobody reads: once, whatever refers to it; none while it is mapped, as RSS has it
    then; none that is closed."""
    before = unmapped_shared_bytes()
    with tempfile.TemporaryFile(dir=SHARED) as file:
        file.write(b"x" * 2 * MiB)
        file.flush()
        twin = os.dup(file.fileno())
        assert unmapped_shared_bytes() - before == 2 * MiB
        with mmap.mmap(file.fileno(), 0):
            assert unmapped_shared_bytes() == before
        assert unmapped_shared_bytes() - before == 2 * MiB
    assert unmapped_shared_bytes() - before == 2 * MiB
    os.close(twin)
    assert unmapped_shared_bytes() == before


def test_the_host_has_both() -> None:
    """RSS, and the shared memory that RSS leaves out."""
    with HostMeter(process=FakeProcess(repeat(500 * MiB)), shared_bytes=lambda: 7 * MiB) as meter:
        assert meter.read() == {"host": 507 * MiB}


def test_growth_of_the_host_is_told_and_never_convicts() -> None:
    """20 MiB a sample, for certain: the channel's own verdict is growth, and the test passes."""
    idle = repeat(500 * MiB, 10)

    def rss() -> Iterator[int]:
        yield from idle
        yield from (500 * MiB + run * 20 * MiB for run in range(10_000))

    meters = [TensorMeter(), HostMeter(process=FakeProcess(rss()))]
    recording = vram.replay(lambda _: torch.zeros(1), range(10), meters=meters)
    assert "host" not in recording.exact
    assert recording.laps == 14  # the same bytes in each of 140 runs
    assert np.diff(recording.channels["host"].ravel()).tolist() == [20 * MiB] * 139
    vram.assert_stable(recording)
