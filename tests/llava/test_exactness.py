"""Simulated, followed and profiled: the same bytes, where a CPU can check what the simulation says.

The simulation follows fake CPU tensors here, so that both sides take the CPU's kernels. Three counts of the same run:
the simulation's, the tensor meter's on a real run, and the profiler's, which sees each allocation on the CPU.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from functools import partial
from itertools import accumulate, product
from typing import Any

import pytest
import torch
from torch import nn

import vram
from llava.modes import MODES, set_mode
from tests.himap.models import llava_inputs, random_llava
from vram.cards import Card
from vram.simulated.context import SimulatedCuda

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

CPU = torch.device("cpu")


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> Any:
        return self.down(torch.nn.functional.silu(self.up(x)) * self.up(x)) + x


def llama(attention: str) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.set_attn_implementation(attention)
    return model


def llava(mode: str, attention: str) -> Any:
    model = random_llava()
    model.set_attn_implementation(attention)
    set_mode(model, mode, **({"custom_first_index": 1} if mode == "custom-fps" else {}))
    return model


def about_an_image(use_cache: bool) -> Callable[[Any], None]:
    inputs = llava_inputs()

    def run(model: Any) -> None:
        pixels = inputs["pixel_values"].to(model.dtype)
        options = {"min_new_tokens": 3, "max_new_tokens": 3, "do_sample": False, "use_cache": use_cache}
        model.generate(**inputs | {"pixel_values": pixels}, **options)
        model.model.reset_hmapv()  # what is remembered of the choice
        model.model.reset_custom_selection()

    return run


def experts() -> Any:
    config = transformers.MixtralConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
    )
    return transformers.MixtralForCausalLM(config).eval()


def grouped(model: Any) -> None:
    rows, weights = (torch.zeros(*shape, dtype=model.up.weight.dtype) for shape in ((16, 32), (3, 21, 32)))
    ends = torch.tensor([3, 7, 16], dtype=torch.int32)
    torch.nn.functional.grouped_mm(rows, weights.transpose(1, 2), offs=ends)


def in_numbers(use_cache: bool) -> Callable[[Any], None]:
    def run(model: Any) -> None:
        model.generate(
            torch.arange(3, 45).reshape(2, 21), min_new_tokens=4, max_new_tokens=4, do_sample=False, use_cache=use_cache
        )

    return run


CASES: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
    "MLP": (Mlp, lambda model: model(torch.zeros(33, 64, dtype=model.up.weight.dtype))),
    # Under inference mode a mode sees it whole; in parts it must be what C++ makes of it: nothing.
    "Dropout": (lambda: nn.Dropout().eval(), lambda model: model(torch.zeros(33, 64))),
    # Its result keeps the room that all would need.
    "unique": (nn.Identity, lambda _: torch.unique_consecutive(torch.tensor([5, 5, 5, 5, 7, 7]))),
    "rows of 21 by groups": (Mlp, grouped),
    "Mixtral, grouped experts": (experts, in_numbers(True)),
    "Llama, eager, cache": (lambda: llama("eager"), in_numbers(True)),
    "Llama, eager, no cache": (lambda: llama("eager"), in_numbers(False)),
    "Llama, SDPA, cache": (lambda: llama("sdpa"), in_numbers(True)),
    "Llama, SDPA, no cache": (lambda: llama("sdpa"), in_numbers(False)),
}
OTHERS = {"Llama, eager, no cache", "Llama, SDPA, cache"}  # with --full
for number, (mode, attention) in enumerate(product(MODES, ("eager", "sdpa"))):
    use_cache = attention == "sdpa"  # LLaMA's cases have the other pairs
    CASES[f"LLaVA, {mode}, {attention}"] = partial(llava, mode, attention), about_an_image(use_cache)
    if number % 5 != 3:  # two of ten on every push: one of each attention
        OTHERS.add(f"LLaVA, {mode}, {attention}")


WAYS = [(torch.float32, torch.inference_mode), (torch.float32, torch.no_grad)]
WAYS += [(torch.float16, torch.inference_mode), (torch.bfloat16, torch.inference_mode)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each case one way, by turns, so that each way has cases, and two of LLaVA's cases. With --full all cases run
    every way."""
    if "inference" in metafunc.fixturenames:
        everything = metafunc.config.getoption("--full", default=False)
        chosen = {
            f"{case}-{str(dtype).removeprefix('torch.')}-{inference.__name__}": (case, dtype, inference)
            for number, case in enumerate(CASES)
            for turn, (dtype, inference) in enumerate(WAYS)
            if everything or ((turn + number + number // 4) % len(WAYS) == 0 and case not in OTHERS)
        }
        metafunc.parametrize(("case", "dtype", "inference"), chosen.values(), ids=chosen)


def test_simulated_and_followed_peaks_are_equal_to_the_byte(case: str, dtype: torch.dtype, inference: Any) -> None:
    """The peak above the weights, in a real run on the CPU and in a simulated one."""
    build, run = CASES[case]
    model = build().to(dtype)
    with inference():
        run(model)  # caches of the model's own
        with vram.measure("cpu") as followed:
            run(model)
    assert simulated_peak_bytes(case, dtype, inference) == followed.peak_bytes - followed.before_bytes


PROFILED: list[Any] = ["MLP", "Dropout", "unique", "Llama, eager, cache"]
# On every push LLaVA is followed, and LLaMA profiled.
PROFILED += [pytest.param(case, marks=pytest.mark.full) for case in CASES if "LLaVA" in case and "sdpa" in case]


@pytest.mark.parametrize("case", PROFILED)
def test_simulated_and_profiled_peaks_are_equal_to_the_byte(case: str) -> None:
    """In float32, where no kernel of these takes scratch memory of its own."""
    build, run = CASES[case]
    model = build()
    with torch.inference_mode():
        run(model)
        gc.collect()
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profiled:
            run(model)
    results = profiled.profiler.kineto_results  # type: ignore[union-attr]
    changes = [event.nbytes() for event in results.events() if event.name() == "[memory]"]
    peak_bytes = max(accumulate(changes))
    assert simulated_peak_bytes(case, torch.float32, torch.inference_mode) == peak_bytes


@functools.cache  # both tests of a case need it
def simulated_peak_bytes(case: str, dtype: torch.dtype, inference: Any) -> int:
    build, run = CASES[case]
    cuda = SimulatedCuda(Card("test", 2**30, context_bytes=0), cublas_workspace=False, device=CPU)
    with cuda, inference():
        model = build().to(dtype)
        run(model)
        gc.collect()
        before_bytes = cuda.allocator.requested_bytes
        cuda.allocator.reset_peak()
        run(model)
        return cuda.allocator.stats.requested_bytes.peak - before_bytes
