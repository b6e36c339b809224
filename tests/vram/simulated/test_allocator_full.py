"""The caching allocator at its limits: a card that is full, settings that it refuses, and its snapshots."""

from __future__ import annotations

from typing import Any

import pytest

from vram.simulated.allocator import CachingAllocator, SimulatedOutOfMemory, cuda_size
from vram.simulated.allocator_figures import Stat

MIB, GIB = 2**20, 2**30


def allocator(capacity_bytes: int = GIB, context_bytes: int = 0, other_bytes: int = 0) -> CachingAllocator:
    return CachingAllocator(capacity_bytes, context_bytes, other_bytes)


def test_cached_segments_go_back_before_it_is_full() -> None:
    """30 MiB cached on a card of 40: 35 MiB fit after a retry, and the peak never was both."""
    device = allocator(40 * MIB)
    device.free(device.malloc(30 * MIB))

    device.malloc(35 * MIB)

    assert device.stats.reserved_bytes == Stat(36 * MIB, 36 * MIB)
    assert (device.stats.alloc_retries, device.stats.ooms) == (1, 0)


def test_exactly_full_is_not_over() -> None:
    """The last byte can be used; one page more cannot."""
    device = allocator(64 * MIB, 10 * MIB, 4 * MIB)
    device.malloc(50 * MIB)
    assert (device.free_bytes, device.stats.alloc_retries) == (0, 0)
    with pytest.raises(SimulatedOutOfMemory):
        device.malloc(1)
    assert (device.stats.alloc_retries, device.stats.ooms) == (1, 1)


def test_what_an_error_tells() -> None:
    """All figures as they are after the retry: the cached 12 MiB went back, the cached part of 20 MiB could not."""
    device = allocator(100 * MIB, 16 * MIB, 4 * MIB)
    device.malloc(3 * MIB)
    device.free(device.malloc(12 * MIB))

    with pytest.raises(SimulatedOutOfMemory) as caught:
        device.malloc(61 * MIB - 5, tag="softmax")

    error = caught.value
    assert (error.requested_bytes, error.segment_bytes, error.tag) == (61 * MIB - 5, 62 * MIB, "softmax")
    assert (error.free_bytes, error.total_bytes, error.process_bytes) == (60 * MIB, 100 * MIB, 36 * MIB)
    assert (error.allocated_bytes, error.reserved_bytes, error.reserved_unallocated_bytes) == (
        3 * MIB,
        20 * MIB,
        17 * MIB,
    )
    assert device.reserved_bytes == 20 * MIB
    device.malloc(60 * MIB)  # it goes on from there


def test_the_incident_asked_for_48_mib() -> None:
    """One fp32 softmax of 627 tokens, 50,320,512 B, is 48.00 MiB in the message, as from 614 on; 613 are 46.00."""
    for tokens, size in [(627, "48.00 MiB"), (614, "48.00 MiB"), (613, "46.00 MiB"), (628, "50.00 MiB")]:
        with pytest.raises(SimulatedOutOfMemory, match=f"Tried to allocate {size}. GPU 0 has"):
            allocator(40 * MIB).malloc(32 * tokens**2 * 4)


def test_cudas_words() -> None:
    """The message is that of torch 2.11 and later, letter by letter, with the figures of a public report of it."""
    error = SimulatedOutOfMemory(
        requested_bytes=4 * GIB,
        segment_bytes=4 * GIB,
        free_bytes=round(3.49 * GIB),
        total_bytes=round(10.56 * GIB),
        process_bytes=round(7.06 * GIB),
        allocated_bytes=round(6.78 * GIB),
        reserved_bytes=round(6.78 * GIB) + round(97.98 * MIB),
    )
    assert str(error) == error.message
    assert error.message == (
        "CUDA out of memory. Tried to allocate 4.00 GiB. GPU 0 has a total capacity of 10.56 GiB of which 3.49 GiB is "
        "free. Including non-PyTorch memory, this process has 7.06 GiB memory in use. Of the allocated memory 6.78 GiB "
        "is allocated by PyTorch, and 97.98 MiB is reserved by PyTorch but unallocated. If reserved but unallocated "
        "memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See "
        "documentation for Memory Management  (https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-"
        "usage-with-pytorch-cuda-alloc-conf)"
    )


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 bytes"),
        (1024, "1024 bytes"),
        (1025, "1.00 KiB"),
        (MIB, "1024.00 KiB"),
        (MIB + 1, "1.00 MiB"),
        (48 * MIB, "48.00 MiB"),
        (GIB, "1024.00 MiB"),
        (GIB + 1, "1.00 GiB"),
        (25_438_126_080, "23.69 GiB"),  # an RTX 3090, as reports of it say
        (5000 * GIB, "5000.00 GiB"),
    ],
)
def test_sizes_in_messages(n_bytes: int, text: str) -> None:
    """A unit ends after 1024 of it, and GiB never."""
    assert cuda_size(n_bytes) == text


# Settings


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "backend:native",
        "expandable_segments:False",
        "pinned_use_background_threads:True, backend:native",
        "pinned_num_register_threads:8,large_segment_size_mb:20,",
    ],
)
def test_settings_that_change_nothing_pass(text: str) -> None:
    """Default values, and settings of host memory."""
    CachingAllocator(GIB, settings=text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expandable_segments:True", r"got expandable_segments:True \(segments that grow page by page"),
        (" expandable_segments : True ", "got expandable_segments:True"),
        ("backend:cudaMallocAsync", r"got backend:cudaMallocAsync \(only PyTorch's own"),
        ("backend:native,throw_on_cudamalloc_oom:True", r"got throw_on_cudamalloc_oom:True \(it is not modelled\)"),
        ("something_new:1", "got something_new:1"),
    ],
)
def test_settings_that_change_figures_are_refused(text: str, message: str) -> None:
    """The error has the name and the way out, wherever in the text the setting is."""
    with pytest.raises(ValueError, match=message + ".*: take it out of PYTORCH_ALLOC_CONF"):
        CachingAllocator(GIB, settings=text)


@pytest.mark.parametrize("text", ["expandable_segments", "a:1;b:2:3", "backend:native expandable_segments:True", ":"])
def test_settings_that_cannot_be_read_are_refused(text: str) -> None:
    """Half-read settings would be settings ignored."""
    with pytest.raises(ValueError, match="must"):
        CachingAllocator(GIB, settings=text)


# Snapshots


def test_a_snapshot_tells_every_block() -> None:
    """Segments tiled by blocks, in use or not, sized as PyTorch's own snapshots have it, with the tag's frames."""
    device = allocator()
    device.malloc(5 * MIB - 3, tag="weights")
    gone = device.malloc(2 * MIB, tag="gone")
    device.malloc(700, stream=3, tag="mask")
    device.free(gone)

    def frames(tag: str) -> list[dict[str, Any]]:
        return [{"filename": "model.py", "line": 7, "name": tag}]

    large, small = device.snapshot(frames)["segments"]

    assert (large["segment_type"], large["total_size"], large["stream"]) == ("large", 20 * MIB, 0)
    assert (large["allocated_size"], large["active_size"], large["requested_size"]) == (5 * MIB, 5 * MIB, 5 * MIB - 3)
    assert (small["segment_type"], small["total_size"], small["stream"]) == ("small", 2 * MIB, 3)
    assert [(b["address"] - large["address"], b["size"], b["requested_size"], b["state"]) for b in large["blocks"]] == [
        (0, 5 * MIB, 5 * MIB - 3, "active_allocated"),
        (5 * MIB, 15 * MIB, 0, "inactive"),
    ]
    assert [b["frames"] for b in large["blocks"]] == [frames("weights"), []]
    assert small["blocks"][0]["frames"] == frames("mask")
    assert device.snapshot()["segments"][0]["blocks"][0]["frames"] == []


def test_pytorchs_own_reader_understands_a_snapshot() -> None:
    """torch.cuda._memory_viz counts the segments and bytes that the allocator says."""
    viz = pytest.importorskip("torch.cuda._memory_viz")
    device = allocator()
    kept = [device.malloc(n) for n in (700, 3 * MIB, 30 * MIB)]
    device.free(kept[1])

    text = viz.segsum(device.snapshot())

    assert "segments: 3" in text
    assert "total_reserved: 52.0MiB" in text
    assert f"total_allocated: {(30 * MIB + 1024) / MIB:.1f}MiB" in text
