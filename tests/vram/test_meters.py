"""What each meter counts, on the real thing where this machine has it."""

from __future__ import annotations

import pytest
import torch

from vram.meters import default_meter, resolve_device
from vram.meters.cuda import CudaMeter
from vram.meters.tensor import TensorMeter

MiB = 2**20


def test_a_storage_counts_once_however_many_tensors_view_it() -> None:
    """Views, slices and reshapes cost nothing; the storage goes when its last view does."""
    with TensorMeter() as meter, meter.watching():
        before = meter.read()["requested"]
        base = torch.zeros(1000)
        view = base[:10].view(2, 5)
        assert meter.read()["requested"] - before == 4000
        del base
        assert meter.read()["requested"] - before == 4000
        del view
        assert meter.read()["requested"] == before


def test_a_view_of_an_older_storage_is_not_new() -> None:
    """What was alive before the meter started is in the first figure, also when only touched later."""
    older = torch.zeros(1000)
    with TensorMeter() as meter, meter.watching():
        before = meter.read()
        assert before["requested"] >= older.nbytes
        view = older[10:]
        assert meter.read() == before
        assert view.shape == (990,)


def test_growing_in_place_is_seen() -> None:
    """`resize_` makes a storage larger without making a tensor."""
    with TensorMeter() as meter, meter.watching():
        tensor = torch.zeros(10)
        before = meter.read()["requested"]
        tensor.resize_(1000)
        assert meter.read()["requested"] - before == 990 * 4


def test_the_peak_is_of_storages_alive_at_once() -> None:
    """Two temporaries after one another peak as one; reset starts from what is alive."""
    with TensorMeter() as meter, meter.watching():
        meter.reset_peak()
        before = meter.read()["requested_peak"]
        for _ in range(2):
            torch.zeros(1000)
        assert meter.read()["requested_peak"] - before == 4000
        meter.reset_peak()
        assert meter.read()["requested_peak"] == meter.read()["requested"]


def test_tensors_in_lists_and_from_autograd_are_seen() -> None:
    """Results in tuples, optimizer-style lists and what autograd saves count like any other."""
    with TensorMeter() as meter, meter.watching():
        before = meter.read()["requested"]
        chunks = torch.split(torch.zeros(1000) + 1, 100)
        values, indices = torch.topk(chunks[0], 10)  # a pair of new tensors
        leaf = torch.zeros(100, requires_grad=True)
        square = leaf * 2
        loss = (square * square).sum()
        del square  # autograd keeps it for the backward pass
        assert meter.read()["requested"] - before == 4000 + 40 + 80 + 400 + 400 + 4
        del chunks, values, indices, loss
        assert meter.read()["requested"] - before == 400


def test_inference_mode_and_other_devices() -> None:
    """Inference tensors count; meta tensors have no bytes to count."""
    with TensorMeter() as meter, meter.watching(), torch.inference_mode():
        before = meter.read()["requested"]
        kept = torch.zeros(1000)
        meta = torch.zeros(1000, device="meta")
        assert meter.read()["requested"] - before == kept.nbytes
        assert meta.shape == kept.shape


def test_leaving_the_meter_stops_it() -> None:
    """After the block nothing is followed, and old storages that die do not reach a later meter's figures."""
    with TensorMeter() as meter, meter.watching():
        kept = torch.zeros(1000)
    figures = meter.read()
    del kept
    torch.zeros(10)
    assert meter.read() == figures


class FakeCuda:
    """`torch.cuda`, as far as the meter asks it, with figures of our own."""

    def __init__(self, **missing: object) -> None:
        self.stats = {
            "requested_bytes.all.current": 100,
            "requested_bytes.all.peak": 300,
            "allocated_bytes.all.current": 512,
            "allocated_bytes.all.peak": 1024,
            "reserved_bytes.all.current": 2 * MiB,
        }
        self.calls: list[tuple[str, torch.device]] = []

    def current_device(self) -> int:
        return 1

    def memory_stats(self, device: torch.device) -> dict[str, int]:
        self.calls.append(("memory_stats", device))
        return self.stats

    def synchronize(self, device: torch.device) -> None:
        self.calls.append(("synchronize", device))

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.calls.append(("reset", device))


def test_the_cuda_meter_reads_the_allocator_of_the_named_device() -> None:
    """Five channels, each from its own statistic, of cuda:1 and of no other device."""
    fake = FakeCuda()
    with CudaMeter("cuda:1", allocator=fake) as meter:
        assert meter.read() == {
            "requested": 100,
            "requested_peak": 300,
            "allocated": 512,
            "allocated_peak": 1024,
            "reserved": 2 * MiB,
        }
        meter.synchronize()
        meter.reset_peak()
    assert meter.source == "CUDA allocator of cuda:1"
    assert {device for _, device in fake.calls} == {torch.device("cuda:1")}
    assert {name for name, _ in fake.calls} == {"memory_stats", "synchronize", "reset"}


def test_the_cuda_meter_without_an_index_means_the_current_device() -> None:
    """ "cuda" is the device PyTorch would use, and is named with its index."""
    assert CudaMeter("cuda", allocator=FakeCuda()).source == "CUDA allocator of cuda:1"


def test_a_statistic_the_allocator_lacks_is_absent_with_a_reason() -> None:
    """Never 0: the channel is missing from the figures and named with why."""
    fake = FakeCuda()
    del fake.stats["requested_bytes.all.peak"]
    with CudaMeter("cuda:0", allocator=fake) as meter:
        assert "requested_peak" not in meter.read()
        assert "does not count" in meter.absent["requested_peak"]


def test_only_requested_channels_are_exact_on_cuda() -> None:
    """Blocks and segments may differ from replay to replay: they are read with a tolerance, and do not decide."""
    meter = CudaMeter("cuda:0", allocator=FakeCuda())
    assert meter.exact == {"requested", "requested_peak"}
    assert meter.tolerance_bytes["allocated_peak"] == MiB
    assert meter.tolerance_bytes["reserved"] == 2 * MiB


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:", "cpu:0", "mps", ""])
def test_a_device_nobody_knows_is_refused(device: str) -> None:
    """The message lists what can be said, and quotes what was."""
    with pytest.raises(ValueError, match="auto, cpu, cuda or cuda:INDEX, got"):
        resolve_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_auto_means_the_cpu_and_cuda_is_refused() -> None:
    """No GPU: the suite runs on CPU tensors; asking for CUDA by name says that there is none."""
    assert isinstance(default_meter("auto"), TensorMeter)
    with pytest.raises(ValueError, match="needs a GPU"):
        default_meter("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_cuda_meter_on_a_real_card() -> None:
    """A kept tensor raises requested by exactly its bytes; a temporary only the peak."""
    with CudaMeter("cuda:0") as meter:
        meter.reset_peak()
        before = meter.read()
        kept = torch.zeros(1000, device="cuda:0")
        torch.zeros(3000, device="cuda:0")
        after = meter.read()
    assert after["requested"] - before["requested"] == kept.nbytes
    assert after["requested_peak"] - before["requested"] == kept.nbytes + 12000
