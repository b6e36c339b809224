"""Each meter counts what it promises, on the real thing where this machine has it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vram
from vram.meters import default_meter, default_meters, resolve_device
from vram.meters.cuda import CudaMeter, allocator_settings
from vram.meters.environment import environment
from vram.meters.tensor import TensorMeter
from vram.torch_hooks.dispatch import VIEWS

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


_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "_unsafe_view": ([24],), "expand": ([2, 3, 4],), "permute": ([2, 0, 1],), "select": (0, 1), "slice": (1, 0, 2),
    "split": (1,), "transpose": (0, 1), "unsqueeze": (0,), "view": ([24],),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(name.removeprefix("aten::") for name in VIEWS))
def test_an_operation_whose_results_are_not_looked_at_makes_no_storage(name: str) -> None:
    """Each of them gives views of its first argument, and nothing else."""
    tensor = torch.zeros(4, 6) if name == "t" else torch.zeros(2, 3, 4)
    result = getattr(torch.ops.aten, name)(tensor, *_ARGUMENTS.get(name, ()))
    results = [result] if isinstance(result, torch.Tensor) else list(result)
    assert results
    assert {each.untyped_storage()._cdata for each in results} == {tensor.untyped_storage()._cdata}


def test_what_views_of_sparse_tensors_make_is_counted() -> None:
    """A transposed sparse tensor has indices and values of its own: 2 rows of 3 int64, and 3 float32."""
    sparse = torch.eye(3).to_sparse()
    with TensorMeter() as meter, meter.watching():
        before = meter.read()["requested"]
        turned = sparse.transpose(0, 1)
        assert meter.read()["requested"] - before == 60
        del turned
        assert meter.read()["requested"] == before


def test_a_view_of_an_older_storage_is_not_new() -> None:
    """Tensors that were alive before the meter started are in the first figure, also when only touched later."""
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


def test_a_storage_resized_by_itself_is_seen() -> None:
    """Freeing a parameter's storage and bringing it back, as sharding libraries do, is no operation of PyTorch's."""
    with TensorMeter() as meter, meter.watching():
        tensor = torch.zeros(1000)
        before = meter.read()["requested"]
        tensor.untyped_storage().resize_(0)
        assert before - meter.read()["requested"] == 4000
        tensor.untyped_storage().resize_(4000)
        assert meter.read()["requested"] == before


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def in_a_pool(work: Callable[[], object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


def in_a_timer(work: Callable[[], object]) -> None:
    timer = threading.Timer(0, work)
    timer.start()
    timer.join()


def in_a_thread_of_a_thread(work: Callable[[], object]) -> None:
    in_a_thread(lambda: in_a_thread(work))


def in_a_task(work: Callable[[], object]) -> None:
    async def task() -> None:
        await asyncio.gather(asyncio.to_thread(work))

    asyncio.run(task())


@pytest.mark.parametrize("run", [in_a_thread, in_a_pool, in_a_timer, in_a_thread_of_a_thread, in_a_task])
def test_threads_that_start_meanwhile_are_followed(run: Callable[[Callable[[], object]], None]) -> None:
    """Memory that they keep counts, and what they drop shows in the peak."""
    kept: list[torch.Tensor] = []

    def work() -> None:
        torch.zeros(3000)
        kept.append(torch.zeros(1000))

    with TensorMeter() as meter, meter.watching():
        before = meter.read()["requested"]
        meter.reset_peak()
        run(work)
        assert meter.read()["requested"] - before == 4000
        assert meter.read()["requested_peak"] - before == 12000


def test_a_pool_s_thread_is_followed_by_whoever_watches_later() -> None:
    """It started under one meter, and works under the next; and for nobody in between."""
    kept: list[torch.Tensor] = []

    def work() -> None:
        torch.zeros(3000)
        kept.append(torch.zeros(1000))

    with ThreadPoolExecutor(1) as pool:
        with TensorMeter() as first, first.watching():
            pool.submit(work).result()
        pool.submit(work).result()
        with TensorMeter() as meter, meter.watching():
            before = meter.read()["requested"]
            pool.submit(work).result()
            assert meter.read()["requested"] - before == 4000
            assert meter.read()["requested_peak"] - before == 12000


def test_a_thread_keeps_its_own_run_and_is_left_alone_afterwards() -> None:
    """Following a thread changes neither what it runs nor, once nobody measures, the class of threads."""
    start, resize = threading.Thread.start, torch.UntypedStorage.resize_
    ran: list[str] = []

    class Own(threading.Thread):
        def run(self) -> None:
            ran.append("own")

    with TensorMeter() as meter, meter.watching():
        assert threading.Thread.start is not start
        thread = Own()
        thread.start()
        thread.join()
    assert ran == ["own"]
    assert threading.Thread.start is start
    assert torch.UntypedStorage.resize_ is resize
    assert "run" not in vars(thread)


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

    def __init__(self) -> None:
        self.stats = {
            "requested_bytes.all.current": 100,
            "requested_bytes.all.peak": 300,
            "allocated_bytes.all.current": 512,
            "allocated_bytes.all.peak": 1024,
            "reserved_bytes.all.current": 2 * MiB,
        }
        self.others: dict[int, dict[str, int]] = {0: {}}
        self.calls: list[tuple[str, torch.device]] = []

    def current_device(self) -> int:
        return 1

    def device_count(self) -> int:
        return 3

    def get_device_properties(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(name=f"card {device.index}", total_memory=24 * 2**30, major=8, minor=6)

    def get_allocator_backend(self) -> str:
        return "native"

    def memory_stats_as_nested_dict(self, device: torch.device) -> dict[str, Any]:
        self.calls.append(("memory_stats", device))
        nested: dict[str, Any] = {}
        for name, figure in self.others.get(device.index, self.stats if device.index != 2 else {}).items():
            kind, pool, which = name.split(".")
            nested.setdefault(kind, {}).setdefault(pool, {})[which] = figure
        return nested

    def synchronize(self, device: torch.device) -> None:
        self.calls.append(("synchronize", device))

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.calls.append(("reset", device))

    def spike(self, n_bytes: int, index: int | None = None) -> None:
        """Something of so many bytes came and went."""
        stats = self.stats if index is None else self.others[index]
        for kind in ("requested_bytes", "allocated_bytes"):
            current = stats[f"{kind}.all.current"]
            stats[f"{kind}.all.peak"] = max(stats[f"{kind}.all.peak"], current + n_bytes)


class ForgetfulCuda(FakeCuda):
    """One whose reset is one."""

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        super().reset_peak_memory_stats(device)
        stats = self.others.get(device.index, self.stats)
        for kind in ("requested_bytes", "allocated_bytes"):
            stats[f"{kind}.all.peak"] = stats[f"{kind}.all.current"]


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


def test_another_device_that_holds_something_is_read_by_its_name() -> None:
    """A leak on cuda:0 shows though cuda:1 is current; cuda:2, with nothing on it, is not even waited for."""
    fake = FakeCuda()
    fake.others[0] = dict(fake.stats)
    with CudaMeter("cuda", allocator=fake) as meter:
        fake.others[0]["requested_bytes.all.current"] = 4196
        figures = meter.read()
        meter.synchronize()
    assert (figures["requested"], figures["cuda:0 requested"], figures["cuda:0 requested_peak"]) == (100, 4196, 300)
    assert "cuda:0 requested" in meter.exact
    assert meter.source == "CUDA allocator of cuda:1 and cuda:0"
    assert ("synchronize", torch.device("cuda:0")) in fake.calls
    assert ("synchronize", torch.device("cuda:2")) not in fake.calls


def test_the_environment_has_the_card_and_the_allocator_s_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs with other settings are not compared: expandable segments change what is reserved."""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    with CudaMeter("cuda:1", allocator=FakeCuda()) as meter:
        told = environment([meter])
    assert (told["device"], told["device_bytes"], told["compute_capability"]) == ("card 1", 24 * 2**30, "8.6")
    assert told["allocator"] == allocator_settings() == "expandable_segments:True"
    assert told["allocator_backend"] == "native"


def test_on_rocm_the_meter_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch calls its devices cuda there; the counters are the same."""
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with CudaMeter("cuda:1", allocator=FakeCuda()) as meter:
        assert meter.source == "ROCm allocator of cuda:1"
        assert meter.facts["hip"] == "6.4"


def test_a_statistic_the_allocator_lacks_is_absent_with_a_reason() -> None:
    """Never 0: the channel is missing from the figures and named with why."""
    fake = FakeCuda()
    del fake.stats["requested_bytes.all.peak"]
    with CudaMeter("cuda:1", allocator=fake) as meter:
        assert "requested_peak" not in meter.read()
        assert "does not count" in meter.absent["requested_peak"]


def test_a_cuda_meter_s_reset_leaves_the_peaks_of_others_that_run() -> None:
    """An outer meter's peak takes in what came before an inner one's reset, and after; the inner one sees its own."""
    fake = ForgetfulCuda()
    fake.others[0] = dict(fake.stats)
    with CudaMeter("cuda", allocator=fake) as outer:
        outer.reset_peak()
        fake.spike(4000)
        fake.spike(3000, index=0)
        with CudaMeter("cuda:1", allocator=fake) as inner:
            inner.reset_peak()
            fake.spike(500)
            assert inner.read()["requested_peak"] == 600
            assert outer.read()["requested_peak"] == 4100
            inner.reset_peak()
        assert (outer.read()["requested_peak"], outer.read()["allocated_peak"]) == (4100, 4512)
        assert outer.read()["requested"] == 100
        with CudaMeter("cuda", allocator=fake) as inner:
            inner.reset_peak()
        assert outer.read()["cuda:0 requested_peak"] == 3100
        fake.spike(5000)
        assert outer.read()["requested_peak"] == 5100
        outer.reset_peak()
        assert outer.read()["requested_peak"] == 100


def test_only_requested_channels_are_exact_on_cuda() -> None:
    """Blocks and segments may differ from replay to replay: they are read with a tolerance, and do not decide."""
    meter = CudaMeter("cuda:0", allocator=FakeCuda())
    assert meter.exact == {"requested", "requested_peak"}
    assert meter.tolerance_bytes["allocated_peak"] == MiB
    assert meter.tolerance_bytes["reserved"] == 2 * MiB


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:", "cpu:0", "xpu:", ""])
def test_a_device_nobody_knows_is_refused(device: str) -> None:
    """The message lists what can be said, and quotes what was."""
    with pytest.raises(
        ValueError,
        match="auto, cpu, cuda, mps, simulated or xpu, as in cuda:INDEX and simulated:CARD where one",
    ):
        resolve_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_auto_means_the_cpu_and_cuda_is_refused() -> None:
    """No GPU: the suite runs on CPU tensors; asking for CUDA by name says that there is none."""
    assert isinstance(default_meter("auto"), TensorMeter)
    assert [meter.source for meter in default_meters("auto")] == ["CPU tensors", "RSS of this process"]
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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_replay_on_a_real_card_leaves_the_peak_of_a_measurement_around_it() -> None:
    """Memory that was needed before the replay, and is freed, stays the peak of the block."""
    with vram.measure("cuda:0") as measured:
        torch.zeros(3 * MiB, device="cuda:0")
        vram.replay(lambda n: torch.zeros(n, device="cuda:0"), [1000], laps=1, meters=[CudaMeter("cuda:0")])
    assert measured.peak_bytes - measured.before_bytes == 12 * MiB
