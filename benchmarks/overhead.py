"""Costs of measuring: `python benchmarks/overhead.py`. The tables are docs/overhead.md's.

Meters of a GPU are timed with stand-ins for it, by the calls that a replay makes: their share of a sample is counted,
not measured. The tensor meter is timed on a real model of random weights on the CPU, beside the peers that are
installed. Times are medians of rounds in which all sides take turns.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vram.explanation.tracer import TensorTracer
from vram.meters import Meter
from vram.meters.cuda import CudaMeter
from vram.meters.host import HostMeter
from vram.meters.nvml import Identity, NvmlMeter
from vram.meters.tensor import TensorMeter
from vram.replaying.collector import cheap_collections

LAYERS, HIDDEN, PROMPT = 8, 512, 671
WEIGHTS = 6.7e9  # of LLaVA-1.5-7B's language model, 2 bytes each
# Dense float16 FLOP/s and bytes/s, by NVIDIA's data sheets.
CARDS = {"A100": (312e12, 2.039e12), "H100": (989e12, 3.35e12)}
Around = Callable[[], AbstractContextManager[object]]


def card() -> Any:
    """`torch.cuda`, as far as the meters ask it."""
    kinds: tuple[str, ...] = ("allocation", "segment", "active", "inactive_split", "allocated_bytes", "reserved_bytes")
    kinds += ("active_bytes", "inactive_split_bytes", "requested_bytes")
    figures = {"current": 2**34, "peak": 2**34, "allocated": 2**40, "freed": 2**40}
    stats = {kind: {pool: dict(figures) for pool in ("all", "small_pool", "large_pool")} for kind in kinds}
    return SimpleNamespace(
        current_device=lambda: 0,
        device_count=lambda: 1,
        get_device_properties=lambda _: SimpleNamespace(name="card", total_memory=2**36, major=9, minor=0, uuid="0"),
        get_allocator_backend=lambda: "native",
        memory_stats_as_nested_dict=lambda device: {  # built anew, as PyTorch does
            kind: {pool: dict(figures) for pool, figures in pools.items()} for kind, pools in stats.items()
        },
        synchronize=lambda _: None,
        reset_peak_memory_stats=lambda _: None,
    )


def driver() -> Any:
    """`pynvml`, with one process on one card. The real calls go to the kernel's driver: add their time."""
    process = SimpleNamespace(pid=1, usedGpuMemory=2**35)
    names = ("NVMLError", "NVMLError_NotFound", "NVMLError_InvalidArgument", "NVMLError_NotSupported")
    module: Any = ModuleType("pynvml")
    vars(module).update({name: type(name, (Exception,), {}) for name in (*names, "NVMLError_FunctionNotFound")})
    module.nvmlInit = module.nvmlShutdown = lambda: None
    module.nvmlSystemGetDriverVersion = lambda: "0"
    module.nvmlDeviceGetHandleByUUID = lambda _: object()
    for kind in ("Compute", "Graphics", "MPSCompute"):
        setattr(module, f"nvmlDeviceGet{kind}RunningProcesses", lambda _: [process])
    return module


def gpu_meters() -> Iterator[tuple[str, Meter]]:
    cuda = card()
    yield "CUDA allocator", CudaMeter("cuda:0", allocator=cuda)
    yield "NVML", NvmlMeter("cuda:0", nvml=driver(), cuda=cuda, identity=Identity((1,), False))
    yield "host (real)", HostMeter()


def a_sample(meter: Meter) -> None:
    """Calls of a replay to a meter for one sample."""
    meter.reset_peak()
    with meter.watching():
        pass
    meter.synchronize()
    if meter.exact:  # before the collection that frees garbage
        meter.read()
    meter.synchronize()
    meter.read()


def shortest(flop_per_s: float, bytes_per_s: float) -> float:
    """Seconds below which no sample can be: the prompt at all of a card's FLOP/s, one token at all of its bandwidth."""
    return 2 * WEIGHTS * PROMPT / flop_per_s + 2 * WEIGHTS / bytes_per_s


def by_count(rounds: int) -> Iterator[list[str]]:
    """The fixed cost of a sample, and what share it is of the shortest sample of a 7B model that a GPU could take."""
    least = {card: shortest(*speeds) for card, speeds in CARDS.items()}
    yield ["what", "a sample", *(f"of {seconds * 1e3:.1f} ms ({card})" for card, seconds in least.items())]
    costs: list[tuple[str, float]] = []
    for name, meter in gpu_meters():
        with meter:
            assert meter.read(), meter.absent
            costs.append((name, cost(lambda: a_sample(meter), rounds)))  # noqa: B023 - called at once
    with cheap_collections():
        costs.append(("collecting garbage, heap frozen", cost(gc.collect, rounds)))
    for name, taken in (*costs, ("together", sum(taken for _, taken in costs))):
        yield [name, f"{taken * 1e6:.1f} us", *(f"{taken / seconds:.2%}" for seconds in least.values())]


def cost(work: Callable[[], object], rounds: int) -> float:
    """Median seconds of one of 50 in a row."""
    times = []
    for _ in range(rounds * 20):
        started = time.perf_counter()
        for _ in range(50):
            work()
        times.append((time.perf_counter() - started) / 50)
    return statistics.median(times)


def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=HIDDEN,
        intermediate_size=HIDDEN * 43 // 16,  # LLaMA-7B's proportion
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // 64,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def works() -> dict[str, Callable[[], object]]:
    llama = model()
    ids = torch.randint(3, 1000, (1, PROMPT), generator=torch.Generator().manual_seed(1))
    cache = llama(ids, use_cache=True).past_key_values

    def token() -> None:
        llama(ids[:, :1], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return {f"prefill of {PROMPT}": lambda: llama(ids, use_cache=True, logits_to_keep=1), "one token": token}


def arounds(folder: Path) -> Iterator[tuple[str, Around | str]]:
    """The block that work is done under, or why it can't be. Set-up of a replay is not timed: see `taking_turns`."""
    yield "nothing", nullcontext
    meter = TensorMeter().__enter__()
    yield "tensor meter", meter.watching
    tracer = TensorTracer().__enter__()
    yield "tracing (the rerun that explains)", lambda: tracer.watching(0)
    yield "torch.profiler, profile_memory", lambda: torch.profiler.profile(profile_memory=True)
    yield "the same, with_stack", lambda: torch.profiler.profile(profile_memory=True, with_stack=True)
    try:
        import memray  # type: ignore[import-not-found]
    except ImportError:
        yield "memray", "not installed here"
        return

    @contextmanager
    def memrays(**options: Any) -> Iterator[None]:
        with tempfile.TemporaryDirectory(dir=folder) as name, memray.Tracker(f"{name}/out.bin", **options):
            yield

    aggregated = memray.FileFormat.AGGREGATED_ALLOCATIONS
    yield f"memray {version('memray')}, as pytest-memray uses it", lambda: memrays(file_format=aggregated)
    yield "the same, native stacks", lambda: memrays(file_format=aggregated, native_traces=True)


def taking_turns(work: Callable[[], object], around: dict[str, Around], rounds: int) -> dict[str, float]:
    """Median seconds of `work` under each."""
    times: dict[str, list[float]] = {name: [] for name in around}
    for turn in range(rounds + 1):
        for name, under in around.items():
            started = time.perf_counter()
            with under():
                work()
            if turn:  # the first is warm-up
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def on_the_cpu(rounds: int) -> Iterator[list[str]]:
    yield ["work", "under", "time", "ratio"]
    with tempfile.TemporaryDirectory() as folder:
        every = list(arounds(Path(folder)))
        ready = {name: under for name, under in every if not isinstance(under, str)}
        for what, work in works().items():
            taken = taking_turns(work, ready, rounds)
            for name, under in every:
                if isinstance(under, str):
                    yield [what, name, under, "-"]
                else:
                    yield [what, name, f"{taken[name] * 1e3:.1f} ms", f"{taken[name] / taken['nothing']:.2f}"]


def show(title: str, rows: Iterator[list[str]]) -> None:
    print(f"\n{title}\n")
    for index, row in enumerate(rows):
        print("| " + " | ".join(row) + " |", flush=True)
        if not index:
            print("|" + "---|" * len(row))


def main() -> None:
    """Print every table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    print(f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}")
    show("A sample on a GPU, with stand-ins for it", by_count(rounds))
    with torch.inference_mode():
        show(f"{LAYERS} layers of {HIDDEN}, float32, inference mode", on_the_cpu(rounds))


if __name__ == "__main__":
    main()
