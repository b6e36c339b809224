"""Streams and events on a simulated card: idioms of one stream, blocks of several, and what waits for another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.cardless.allocations import Scenario, rows
from tests.vram.simulated.devices import device
from tests.vram.simulated.test_allocator_settings import Model
from vram.simulated.allocator import CachingAllocator
from vram.simulated.allocator_figures import Stat
from vram.simulated.trace import Recorder, Replay

MIB, GIB = 2**20, 2**30


def timed() -> Any:
    first, second = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    torch.zeros(3, device="cuda")
    second.record()
    torch.cuda.synchronize()
    assert second.query()
    return 0 < first.elapsed_time(second) < 60_000


def within(stream: Any) -> Any:
    with torch.cuda.stream(stream):
        return torch.cuda.current_stream() == stream


def generic() -> Any:
    stream = torch.Stream("cuda")
    with stream:
        inside = torch.accelerator.current_stream() == stream
    return inside and torch.accelerator.current_stream() == torch.cuda.default_stream()


IDIOMS: dict[str, Callable[[], Any]] = {
    "waits": lambda: torch.cuda.current_stream().synchronize() is None,
    "is done": lambda: torch.cuda.current_stream("cuda:0").query(),
    "the default one is current": lambda: torch.cuda.default_stream() == torch.cuda.current_stream(),
    "times": timed,
    "on another": lambda: within(torch.cuda.Stream(priority=-1)),
    "on none": lambda: not within(None),
    "of any accelerator": generic,
    "of each other": lambda: torch.cuda.Stream().wait_stream(torch.cuda.current_stream()) is None,
    "for an event": lambda: torch.cuda.current_stream().wait_event(torch.cuda.current_stream().record_event()) is None,
    "is a stream": lambda: (
        isinstance(torch.cuda.Stream(), torch.cuda.Stream) and isinstance(torch.Stream(), torch.Stream)
    ),
    "is an event": lambda: isinstance(torch.cuda.current_stream().record_event(), torch.cuda.Event),
    "is the key of a dictionary": lambda: {torch.cuda.current_stream(): True}[torch.cuda.default_stream()],
    "to the end": lambda: torch.zeros(3, device="cuda").record_stream(torch.cuda.current_stream()) is None,
    "captures nothing": lambda: not torch.cuda.current_stream().is_capturing(),
    "in main memory": lambda: torch.Event("cpu").device.type == "cpu",
}


@pytest.mark.parametrize("idiom", IDIOMS.values(), ids=IDIOMS)
def test_an_idiom_of_one_stream_works_as_on_a_card(idiom: Callable[[], Any]) -> None:
    """Nothing waits, and events have the time of this machine."""
    with device():
        assert idiom()
        assert torch.cuda.current_stream().stream_id == 0


def test_torch_has_its_own_classes_back() -> None:
    """After the simulation, and in modules that took them before."""
    before = (
        torch.cuda.Stream,
        torch.Stream,
        torch.Event,
        torch.Tensor.record_stream,
        vars(torch.cuda.Stream)["__new__"],
    )
    with device():
        pass
    assert before == (
        *(torch.cuda.Stream, torch.Stream, torch.Event, torch.Tensor.record_stream),
        vars(torch.cuda.Stream)["__new__"],
    )


@pytest.mark.parametrize("untimed", [0, 1])
def test_an_event_without_timing_has_no_time(untimed: int) -> None:
    """In torch's words; so has one that was not recorded."""
    with device():
        events = [torch.cuda.Event(enable_timing=index != untimed) for index in range(2)]
        with pytest.raises(ValueError, match="must be created with argument 'enable_timing=True'"):
            events[0].elapsed_time(events[1])
        with pytest.raises(ValueError, match="must be recorded"):
            torch.cuda.Event(enable_timing=True).elapsed_time(torch.cuda.Event(enable_timing=True))


REFUSED: dict[str, Callable[[], Any]] = {
    "a graph": lambda: torch.cuda.CUDAGraph(),
    "a graph by its module": lambda: torch.cuda.graphs.CUDAGraph(),
    "a pool of graphs by its module": lambda: torch.cuda.graphs.graph_pool_handle(),
    "a pool by its module": lambda: torch.cuda.memory.MemPool(),  # type: ignore[attr-defined]
    "capturing": lambda: torch.cuda.graph(None),  # type: ignore[arg-type]
    "graphs of functions": lambda: torch.cuda.make_graphed_callables(print, ()),
    "another library's stream": lambda: torch.cuda.ExternalStream(7),
    "its pointer": lambda: torch.cuda.get_stream_from_external(7),
    "an event for other processes": lambda: torch.cuda.Event().ipc_handle(),
}


@pytest.mark.parametrize("ask", REFUSED.values(), ids=REFUSED)
def test_graphs_and_streams_of_others_are_refused(ask: Callable[[], Any]) -> None:
    """Their memory is in pools of its own, or nobody's here."""
    with device(), pytest.raises(NotImplementedError, match=r"simulated CUDA .* measure on a GPU"):
        ask()


def test_new_streams_strand_what_was_cached_on_earlier_ones() -> None:
    """vllm#52950 in small: 2 blocks of 12 MiB a call on a new stream add 24 MiB each, and none once it is reused.

    torch has 32 streams of a priority: the 33rd is the first again.
    """
    with device():

        def transfer(stream: Any) -> int:
            with torch.cuda.stream(stream):
                for _ in range(2):
                    kept = [torch.empty(12 * MIB, dtype=torch.uint8, device="cuda") for _ in range(2)]
                del kept
            return torch.cuda.memory_reserved() // MIB

        assert [transfer(torch.cuda.Stream()) for _ in range(34)] == [*range(48, 48 * 32 + 1, 48), *[48 * 32] * 2]
        torch.cuda.empty_cache()
        one = torch.cuda.Stream()
        assert [transfer(one) for _ in range(4)] == [48] * 4


def test_a_tensor_that_another_stream_uses_is_not_reused_at_once() -> None:
    """Freed, it is allocated no more, but active until the next request; then it is cached on its own stream."""
    with device() as cuda:
        other, used = torch.cuda.Stream(), torch.empty(3 * MIB, dtype=torch.uint8, device="cuda")
        used[:5].record_stream(other)  # a view's storage is the whole
        del used
        stats = cuda.allocator.stats
        assert (stats.allocated_bytes, stats.active_bytes) == (Stat(0, 3 * MIB), Stat(3 * MIB, 3 * MIB))
        assert (stats.requested_bytes.current, stats.active.current) == (3 * MIB, 1)
        states = [block["state"] for block in torch.cuda.memory_snapshot()[0]["blocks"]]
        assert states == ["active_pending_free", "inactive"]
        torch.empty(2 * MIB, dtype=torch.uint8, device="cuda")
        assert cuda.allocator.stats.active_bytes.current == 0
        assert cuda.allocator.reserved_bytes == 20 * MIB


def test_emptying_the_cache_waits_for_every_stream() -> None:
    """A block that waits goes back with the others."""
    card = CachingAllocator(GIB)
    block = card.malloc(12 * MIB, stream=3)
    card.record_stream(block, 3)  # its own stream needs no waiting
    card.record_stream(block, 5)
    card.free(block)
    with pytest.raises(ValueError, match="freed once"):
        card.free(block)
    assert (card.reserved_bytes, card.stats.active_bytes.current) == (12 * MIB, 12 * MIB)
    card.reset_peak()
    assert card.stats.active_bytes == Stat(12 * MIB, 12 * MIB)
    card.empty_cache()
    assert (card.reserved_bytes, card.stats.active_bytes) == (0, Stat(0, 12 * MIB))


def test_a_replay_needs_no_record_of_what_other_streams_used() -> None:
    """A block that waited is back at the next request: the same peaks, segments and places of blocks without."""
    scenario = Scenario("", 21, streams=3)
    played = CachingAllocator(64 * GIB)

    class Requests(Model):
        def __init__(self) -> None:
            self.card = CachingAllocator(64 * GIB)
            self.recorder = Recorder(self.card)

        def reset_peaks(self) -> None:
            """Not here: a play has one peak."""

    requests = Requests()
    list(rows(requests, scenario))
    result = Replay(played).play(requests.recorder.cut())
    stats = requests.card.stats
    assert result.allocated_peak_bytes == stats.allocated_bytes.peak
    assert result.reserved_peak_bytes == stats.reserved_bytes.peak
    places = [[(block.address, block.size) for block in card.blocks()] for card in (played, requests.card)]
    assert places[0] == places[1]


def test_each_stream_has_its_workspace_of_cublas() -> None:
    """8,519,680 B on the first product of each, as PyTorch takes it by handle and stream."""
    with device(cublas_workspace=True) as cuda, torch.no_grad():
        layer, x = nn.Linear(8, 8, bias=False, device="cuda"), torch.zeros(1, 8, device="cuda")
        taken = []
        for stream in (torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.current_stream()):
            before = cuda.allocator.allocated_bytes
            with torch.cuda.stream(stream):
                layer(x)
            taken.append(cuda.allocator.allocated_bytes - before)
        assert taken == [8_519_680, 8_519_680, 0]


def test_each_thread_has_its_current_stream() -> None:
    """It begins with the default one."""
    with device():
        found: list[Any] = []
        with torch.cuda.stream(torch.cuda.Stream()):
            thread = threading.Thread(target=lambda: found.append(torch.cuda.current_stream()))
            thread.start()
            thread.join()
        assert found == [torch.cuda.default_stream()]


def test_an_offloaded_cache_has_one_layer_on_the_card() -> None:
    """transformers' `cache_implementation="offloaded"` fetches the next layer on a stream of its own.

    PyTorch's CUDA code without a card has the same peaks, to the byte.
    """
    config = LlamaConfig(
        vocab_size=128, hidden_size=128, intermediate_size=128, num_hidden_layers=8, num_attention_heads=4
    )
    peaks = {}
    for kind in (None, "offloaded"):
        with device() as cuda, torch.no_grad():
            with torch.device("cuda"):
                model = LlamaForCausalLM(config).eval()
            prompt = torch.ones(1, 512, dtype=torch.long, device="cuda")
            model.generate(
                prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False, cache_implementation=kind, use_cache=True
            )
            peaks[kind] = cuda.allocator.stats.requested_bytes.peak
    assert peaks[None] - peaks["offloaded"] == 7 * (2 * 512 * 128 * 4)
