"""The simulated device: its counts, its answers about the card, its refusals, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import fake_tensor
from torch.cuda import max_memory_allocated

import vram
from tests.vram.simulated.devices import device
from vram.cards import Card
from vram.meters.simulated import SimulatedCudaMeter
from vram.simulated.context import DEVICE, SimulatedCuda

MiB = 2**20


def test_tensors_have_no_bytes_and_are_counted_in_blocks_and_segments() -> None:
    """7 GiB on a machine that need not have them; 1,000 B are a block of 1,024 in a segment of 2 MiB."""
    with device() as cuda:
        large = torch.empty(7 * 2**30, dtype=torch.uint8, device="cuda")
        small = torch.zeros(250, device="cuda:0")
        assert (cuda.allocator.requested_bytes, cuda.allocator.allocated_bytes) == (7 * 2**30 + 1000, 7 * 2**30 + 1024)
        assert cuda.allocator.reserved_bytes == 7 * 2**30 + 2 * MiB
        del large, small
    assert cuda.allocator.allocated_bytes == 0


def test_a_storage_counts_once_and_ends_with_its_last_view() -> None:
    """Views, slices and results written in place are no new storages; resizing is."""
    with device() as cuda:
        tensor = torch.zeros(1000, 4, device=DEVICE)
        before = cuda.allocator.requested_bytes
        view = tensor[:10].view(-1)
        tensor.add_(1)
        tensor[0] = 2
        assert cuda.allocator.requested_bytes == before == 16_000
        del tensor
        assert cuda.allocator.requested_bytes == before
        view.untyped_storage().resize_(0)
        view = torch.zeros(3, device=DEVICE)
        view.resize_(10)
        gc.collect()
        assert cuda.allocator.requested_bytes == 40


MOVES: dict[str, Callable[[Any], Any]] = {
    "to cuda": lambda it: it.to("cuda"),
    "to a device without an index": lambda it: it.to(torch.device("cuda")),
    "to device=": lambda it: it.to(device="cuda"),
    "cuda()": lambda it: it.cuda(),
    "to 0": lambda it: it.to(0),
    "cuda(0)": lambda it: it.cuda(0),
    "a copy of it": lambda it: copy.deepcopy(it.cuda()),
    "cast and moved": lambda it: it.to("cuda:0", torch.float16),
    "half": lambda it: it.cuda().half(),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_tensors_and_modules_move_there_however_it_is_said(move: Callable[[Any], Any]) -> None:
    """ "cuda" is cuda:0, and never the meta device; a module takes its parameters along."""
    with device() as cuda:
        assert move(torch.zeros(3)).device == DEVICE
        module = move(nn.Linear(8, 4))
        assert {parameter.device for parameter in module.parameters()} == {DEVICE}
        assert module(move(torch.zeros(2, 8))).shape == (2, 4)
        gc.collect()
        size = 2 if module.weight.dtype == torch.float16 else 4
        assert cuda.allocator.requested_bytes == (8 * 4 + 4) * size


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("n_workers", [0, 1])
def test_data_loaders_bring_their_batches_pinned_or_by_workers(n_workers: int) -> None:
    """A worker reads for real; what it sends is real, and its integers are known."""
    numbers = torch.utils.data.TensorDataset(torch.arange(10), torch.randn(10, 3))
    with device() as cuda:
        seen = []
        for ids, pixels in torch.utils.data.DataLoader(numbers, batch_size=4, num_workers=n_workers, pin_memory=True):
            assert cuda.allocator.requested_bytes == 0
            seen += ids.to("cuda", non_blocking=True).tolist()
            assert pixels.cuda().shape[1:] == (3,)
        assert seen == list(range(10))


def test_the_card_is_the_accelerator() -> None:
    """Asked for as such, or by its number alone, as `device_map="auto"` does; optimizers ask it too."""
    with device() as cuda:
        assert torch.accelerator.is_available()
        assert torch.accelerator.current_accelerator().type == "cuda"
        assert torch.device(0) == DEVICE
        kept = nn.Linear(16, 16, bias=False).to(torch.accelerator.current_accelerator())
        assert torch.accelerator.memory_allocated() == kept.weight.nbytes
        assert torch.accelerator.memory.memory_allocated() == kept.weight.nbytes
        kept.weight.grad = torch.zeros_like(kept.weight)
        optimizer = torch.optim.SGD(kept.parameters(), momentum=0.9)
        optimizer.step()
        assert cuda.allocator.requested_bytes == 3 * kept.weight.nbytes
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.zeros(3, device=torch.device(1))


def test_generators_on_the_card_are_taken() -> None:
    """They say that they are there; numbers of the card are not drawn, those of the CPU are."""
    before, there = torch.Generator, torch.Generator().manual_seed(3)
    with device():
        torch.cuda.manual_seed(1)
        generator = torch.Generator(device="cuda").manual_seed(3)
        assert (generator.device.type, generator.initial_seed()) == ("cuda", 3)
        assert torch.randn(4, generator=generator, device="cuda").shape == (4,)
        assert isinstance(there, torch.Generator)
        assert torch.Generator().device.type == "cpu"
        sent = pickle.dumps(there)
        with pytest.raises(RuntimeError, match="invalid device ordinal"):
            torch.Generator("cuda:1")
        drawn = torch.randperm(9, generator=there).tolist()
    assert torch.Generator is before
    assert pickle.loads(sent).initial_seed() == 3  # noqa: S301 (ours)
    assert drawn == torch.randperm(9, generator=torch.Generator().manual_seed(3)).tolist()


def test_another_card_than_the_one_is_refused() -> None:
    """Never counted as nothing."""
    with device():
        for ask in (
            lambda: torch.zeros(3, device="cuda:1"),
            lambda: torch.zeros(3).to("cuda:1"),
            lambda: torch.zeros(3).cuda(1),
            lambda: torch.cuda.set_device(1),
        ):
            with pytest.raises(RuntimeError, match="invalid device ordinal"):
                ask()


def test_what_torch_s_functions_say_they_say_however_they_are_reached() -> None:
    """Imported before, in `torch.cuda.memory`, and by the names that `memory_stats` has on a card."""
    with device() as cuda:
        kept = torch.zeros(1000, device="cuda")
        assert max_memory_allocated() == torch.cuda.memory.max_memory_allocated() == cuda.allocator.allocated_bytes
        stats = torch.cuda.memory_stats(device="cuda:0")
        assert (stats["allocation.all.current"], stats["segment.all.peak"]) == (1, 1)
        assert sum(segment["total_size"] for segment in torch.cuda.memory_snapshot()) == 2 * MiB
        with torch.cuda.device(0):
            assert torch.cuda.current_device() == kept.get_device() == 0


def test_a_process_can_be_allowed_a_part_of_the_card() -> None:
    """`set_per_process_memory_fraction` bounds what is reserved, and the message says so as torch does."""
    with device("1GiB"):
        assert torch.cuda.get_per_process_memory_fraction() == 1.0
        torch.cuda.set_per_process_memory_fraction(0.25)
        assert torch.cuda.get_per_process_memory_fraction() == 0.25
        kept = [torch.empty(100 * MiB, dtype=torch.uint8, device="cuda") for _ in range(2)]
        words = r"Tried to allocate 100.00 MiB.* memory in use. 256.00 MiB allowed; Of the allocated memory 200.00 MiB"
        with pytest.raises(torch.OutOfMemoryError, match=words):
            torch.empty(100 * MiB, dtype=torch.uint8, device="cuda")
        stats = torch.cuda.memory_stats()
        assert (len(kept), stats["num_alloc_retries"], stats["num_ooms"]) == (2, 1, 1)
        torch.cuda.reset_accumulated_memory_stats()
        stats = torch.cuda.memory_stats()
        assert (stats["num_alloc_retries"], stats["num_ooms"]) == (0, 0)
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
        torch.empty(100 * MiB, dtype=torch.uint8, device="cuda")
        with pytest.raises(ValueError, match="Allowed range: 0~1"):
            torch.cuda.set_per_process_memory_fraction(2.0)
        with pytest.raises(torch.OutOfMemoryError, match="more than 1EB memory"):
            torch.empty(2**60, dtype=torch.uint8, device="cuda")
        assert torch.cuda.memory_stats()["num_ooms"] == 0


def test_figures_and_history_that_it_has_not_are_refused_by_name(tmp_path: Path) -> None:
    """There are no addresses, no history, no driver; there is a snapshot of live memory."""
    with device():
        kept = torch.zeros(1000, device="cuda")
        with pytest.raises(KeyError, match="num_ipc_handles: simulated CUDA has no such figure"):
            torch.cuda.memory_stats()["num_ipc_handles"]
        with pytest.raises(NotImplementedError, match="no addresses to hand out"):
            torch.cuda.caching_allocator_alloc(4)
        for name in ("list_gpu_processes", "memory_usage", "device_memory_used", "utilization", "temperature"):
            with pytest.raises(NotImplementedError, match="a simulated card has no driver"):
                getattr(torch.cuda, name)()
        with pytest.warns(UserWarning, match="records no history"):
            torch.cuda.memory._record_memory_history()
        torch.cuda.memory._dump_snapshot(str(tmp_path / "snapshot.pickle"))
        assert (tmp_path / "snapshot.pickle").stat().st_size > 100
        segments = torch.cuda.memory._snapshot()["segments"]
        assert [segment["requested_size"] for segment in segments] == [kept.nbytes]


def test_what_it_does_not_model_it_says() -> None:
    """cuDNN's recurrent networks, graphs, compiled code and the encoder's fused path: never a wrong figure in
    silence."""
    encoder = nn.TransformerEncoderLayer(16, 2, batch_first=True).eval()
    with device(), torch.inference_mode():
        x = torch.zeros(1, 4, 16, device="cuda")
        with pytest.raises(NotImplementedError, match="cuDNN's lstm"):
            nn.LSTM(16, 16).cuda()(x)
        with pytest.raises(NotImplementedError, match="CUDA graphs"):
            torch.cuda.CUDAGraph()
        with pytest.warns(UserWarning, match="compiled code allocates otherwise"):
            torch.compile(nn.Linear(16, 16).cuda())(x)
        padded = torch.tensor([[False, False, True, True]], device="cuda")
        for masks in ({}, {"src_key_padding_mask": padded}):
            with pytest.warns(UserWarning, match="set_fastpath_enabled"):
                encoder.cuda()(x, **masks)
        with pytest.warns(UserWarning, match="set_fastpath_enabled"):
            nn.TransformerEncoder(encoder, 1)(x, src_key_padding_mask=padded)


def test_questions_about_the_gpu_are_answered_by_the_card_and_undone() -> None:
    """Inside, the simulated card's figures; outside, what torch said before, also after an error."""
    names = ("is_available", "device_count", "memory_allocated", "max_memory_reserved", "mem_get_info", "empty_cache")
    before = [getattr(torch.cuda, name) for name in names]
    cuda = device(Card("test", 4 * 2**30, (9, 0), context_bytes=2**30))

    def fails_inside() -> None:
        with cuda, cuda:
            kept = torch.zeros(MiB, device="cuda")
            assert torch.cuda.is_available()
            assert torch.cuda.get_device_properties(0).total_memory == 4 * 2**30
            assert torch.cuda.get_device_capability() == (9, 0)
            assert torch.cuda.memory_allocated() == kept.nbytes == torch.cuda.memory_stats()["requested_bytes.all.peak"]
            assert torch.cuda.mem_get_info() == (3 * 2**30 - 20 * MiB, 4 * 2**30)
            torch.cuda.reset_peak_memory_stats()
            raise KeyError

    with pytest.raises(KeyError):
        fails_inside()
    assert [getattr(torch.cuda, name) for name in names] == before
    assert torch.zeros(1).item() == 0


def test_out_of_memory_is_pytorch_s_error_and_the_run_goes_on() -> None:
    """In CUDA's words, with the size of the segment; live memory stays counted, and smaller work fits."""
    with device(Card("small", 64 * MiB, context_bytes=0)) as cuda:
        kept = torch.zeros(40 * MiB, dtype=torch.uint8, device="cuda")
        with pytest.raises(
            torch.OutOfMemoryError, match=r"Tried to allocate 26\.00 MiB\. GPU 0 has a total capacity of"
        ):
            torch.zeros(25 * MiB, dtype=torch.uint8, device="cuda")
        assert cuda.allocator.requested_bytes == kept.nbytes
        torch.zeros(20 * MiB, dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize(("capability", "n_bytes"), [((8, 0), 8_519_680), ((9, 0), 32 * MiB)])
def test_cublas_takes_its_workspace_once(capability: tuple[int, int], n_bytes: int) -> None:
    """At the first matrix product, inside what is allocated, for good; not for sums."""
    with SimulatedCuda(Card("test", 2**30, capability, context_bytes=0)) as cuda:
        matrix = torch.zeros(8, 8, device="cuda")
        matrix.sum()
        before = cuda.allocator.requested_bytes
        for _ in range(2):
            matrix @ matrix
        assert cuda.allocator.requested_bytes - before == n_bytes


def test_a_torch_with_cuda_needs_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a GPU that is there touched: fake tensors wake none, and without one no driver is called."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda _: pytest.fail("a GPU was woken"))
    with device() as cuda:
        kept = torch.arange(8, device="cuda")[2:].to("cpu").to("cuda")
        assert kept.nonzero().shape == (6, 1)
        assert cuda.allocator.requested_bytes >= kept.nbytes


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_allocator_settings_are_refused_not_ignored(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """expandable_segments would change every figure of what is reserved, and no caching all others."""
    monkeypatch.setenv(name, "expandable_segments:True")
    with pytest.raises(ValueError, match="expandable_segments"):
        device()
    monkeypatch.delenv(name)
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    with pytest.raises(ValueError, match="PYTORCH_NO_CUDA_MEMORY_CACHING: simulated CUDA models a caching allocator"):
        device()


def test_composite_operations_are_taken_apart_under_inference_mode_too() -> None:
    """A matrix product of four dimensions copies what it expands; that shows in the peak either way."""
    peaks = []
    for mode in (torch.inference_mode, torch.no_grad):
        with device() as cuda, mode():
            first, second = torch.zeros(4, 8, 64, 32, device="cuda"), torch.zeros(8, 32, 64, device="cuda")
            cuda.allocator.reset_peak()
            torch.matmul(first, second)
            peaks.append(cuda.allocator.stats.requested_bytes.peak)
    assert peaks[0] == peaks[1] > (4 * 8 * 64 * 32 + 8 * 32 * 64 + 4 * 8 * 64 * 64) * 4


def test_a_replay_on_it_is_exact_judged_and_explained() -> None:
    """The same calls as on a GPU: a leak ends in growth of so many bytes, and names the line and the list."""
    kept: list[torch.Tensor] = []
    meter = SimulatedCudaMeter(device())
    stable = vram.replay(lambda n: torch.zeros(n, device="cuda"), [10, 10_000], laps=3, meters=[meter])
    vram.assert_stable(stable)
    assert stable.exact == stable.channels.keys()
    assert stable.environment["device"] == "simulated 8GiB"
    leak = vram.replay(lambda n: kept.append(torch.zeros(n, device="cuda")), [1000] * 5, meters=[meter])
    with pytest.raises(vram.MemoryGrowth, match=r"requested\) grows by 4,000 B a sample"):
        vram.assert_stable(leak)
