"""Which attention kernel a card runs, and what it allocates: PyTorch's rules, and the profiler's count."""

from __future__ import annotations

import gc
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vram.cards import Card
from vram.simulated.context import SimulatedCuda
from vram.simulated.kernels.attention import _MathOnCuda, kernel

HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32
CUDNN, FLASH = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
EFFICIENT, MATH = SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH
VOLTA, AMPERE, HOPPER = (7, 0), (8, 0), (9, 0)
FLASH_RESULTS = 5  # the result, its sums, and what dropout draws
attend = torch.nn.functional.scaled_dot_product_attention


def inputs(
    dtype: torch.dtype = HALF, *, heads: tuple[int, int] = (4, 4), size: int = 64, tokens: tuple[int, int] = (10, 10)
) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.zeros(2, heads[0], tokens[0], size, dtype=dtype, device="meta")
    k = torch.zeros(2, heads[1], tokens[1], size, dtype=dtype, device="meta")
    return q, k, k


MASK = torch.zeros(2, 1, 10, 10, dtype=torch.bool, device="meta")
CHOICES: dict[str, tuple[tuple[int, int], dict[str, Any], dict[str, Any], SDPBackend]] = {
    # card; inputs; how they are attended to; the kernel
    "half": (AMPERE, {}, {}, FLASH),
    "half, Hopper": (HOPPER, {}, {}, CUDNN),
    "half, Blackwell for data centres": ((10, 0), {}, {}, CUDNN),
    "half, Blackwell for desktops": ((12, 0), {}, {}, FLASH),
    "half, Volta": (VOLTA, {}, {}, EFFICIENT),
    "bfloat16": (AMPERE, {"dtype": BRAIN}, {}, FLASH),
    "bfloat16, Volta": (VOLTA, {"dtype": BRAIN}, {}, MATH),
    "float32": (AMPERE, {"dtype": FLOAT}, {}, EFFICIENT),
    "float32, Hopper": (HOPPER, {"dtype": FLOAT}, {}, EFFICIENT),
    "float64": (AMPERE, {"dtype": torch.float64}, {}, MATH),
    "mask": (AMPERE, {}, {"mask": MASK}, EFFICIENT),
    "mask, Hopper": (HOPPER, {}, {"mask": MASK}, CUDNN),
    "mask of three dimensions, Hopper": (HOPPER, {}, {"mask": MASK[0]}, EFFICIENT),
    "mask with gaps between columns": (AMPERE, {}, {"mask": MASK.mT}, MATH),
    "one new token": (AMPERE, {"tokens": (1, 10)}, {}, FLASH),
    "one new token, Hopper": (HOPPER, {"tokens": (1, 10)}, {}, CUDNN),
    "one key, Hopper": (HOPPER, {"tokens": (1, 1)}, {}, FLASH),
    "no key": (AMPERE, {"tokens": (1, 0)}, {}, MATH),
    "causal": (AMPERE, {}, {"is_causal": True}, FLASH),
    "causal, not square": (AMPERE, {"tokens": (4, 10)}, {"is_causal": True}, EFFICIENT),
    "large heads": (AMPERE, {"size": 256}, {}, FLASH),
    "large heads, Hopper": (HOPPER, {"size": 256}, {}, CUDNN),
    "larger heads, Hopper": (HOPPER, {"size": 264}, {}, EFFICIENT),
    "large heads, Blackwell": ((10, 0), {"size": 256}, {}, FLASH),
    "larger heads": (AMPERE, {"size": 264}, {}, EFFICIENT),
    "odd heads": (AMPERE, {"size": 20}, {}, FLASH),
    "odd heads, Hopper": (HOPPER, {"size": 20}, {}, FLASH),
    "odd heads and a mask": (AMPERE, {"size": 20}, {"mask": MASK}, MATH),
    "odd heads, float32": (AMPERE, {"size": 6, "dtype": FLOAT}, {}, MATH),
    "odd heads, float32, Volta": (VOLTA, {"size": 6, "dtype": FLOAT}, {}, EFFICIENT),
    "grouped heads": (AMPERE, {"heads": (4, 2)}, {"grouped": True}, FLASH),
    "grouped heads, Hopper": (HOPPER, {"heads": (4, 2)}, {"grouped": True, "mask": MASK}, CUDNN),
    "fewer heads, not grouped": (AMPERE, {"heads": (4, 1)}, {}, MATH),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_the_kernel_is_the_one_the_card_would_run(choice: str) -> None:
    """Each condition of sdp_utils.cpp by itself."""
    capability, shape, how, expected = CHOICES[choice]
    assert kernel(capability, *inputs(**shape), **how) == expected


def test_grouped_heads_with_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only from torch 2.14 on the memory-efficient kernel takes them."""
    how: Any = {"mask": MASK, "grouped": True}
    for version, expected in (("2.13.1+cu130", MATH), ("2.14.0", EFFICIENT)):
        monkeypatch.setattr(torch, "__version__", version)
        assert kernel(AMPERE, *inputs(heads=(4, 2)), **how) == expected


def test_the_user_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sdpa_kernel`, its order if set, deterministic algorithms and torch's own variable are heeded as on a card."""
    with sdpa_kernel(MATH):
        assert kernel(HOPPER, *inputs()) == MATH
    with sdpa_kernel([FLASH, EFFICIENT]):
        assert kernel(HOPPER, *inputs()) == FLASH
    with sdpa_kernel([EFFICIENT, FLASH], set_priority=True):
        assert kernel(AMPERE, *inputs()) == EFFICIENT
    with sdpa_kernel(FLASH), pytest.raises(RuntimeError, match="No available kernel"):
        kernel(AMPERE, *inputs(), mask=MASK)
    torch.use_deterministic_algorithms(True)
    try:
        assert kernel(HOPPER, *inputs()) == FLASH
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")
    assert kernel(HOPPER, *inputs()) == FLASH


@pytest.mark.parametrize(("installed", "expected"), [(91501, CUDNN), (91500, FLASH)])
def test_an_older_cudnn_is_not_preferred(monkeypatch: pytest.MonkeyPatch, installed: int, expected: SDPBackend) -> None:
    """The version of cuDNN in a CUDA build of torch counts; a CPU build is taken for one with a new cuDNN."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: installed)
    assert kernel(HOPPER, *inputs()) == expected


def test_a_gpu_of_this_machine_does_not_decide() -> None:
    """Where one prefers cuDNN, torch has put it first for the whole process: a simulated Ampere still runs flash."""
    before = torch._C._get_sdp_priority_order()
    try:
        torch._C._set_sdp_priority_order([int(each) for each in (CUDNN, FLASH, EFFICIENT, MATH)])
        assert kernel(AMPERE, *inputs()) == FLASH
    finally:
        torch._C._set_sdp_priority_order(before)


def attended(capability: tuple[int, int], mask: tuple[int, ...] | None, dtype: torch.dtype) -> list[tuple[str, int]]:
    """Operation and bytes of each storage of more than 16 B that attention takes, 4 heads x 52 x 52 tokens."""
    with SimulatedCuda(Card("test", 2**30, capability, context_bytes=0)) as cuda, torch.inference_mode():
        q = torch.zeros(2, 4, 52, 8, dtype=dtype, device="cuda")
        made = None if mask is None else torch.ones(mask, dtype=torch.bool, device="cuda")
        taken: list[tuple[str, int]] = []
        cuda.describe = lambda name, tensor: taken.append((name, tensor.untyped_storage().nbytes()))
        attend(q, q, q, made)
    return [
        (name.removeprefix("aten.").removeprefix("_scaled_dot_product_"), size) for name, size in taken if size > 16
    ]


def test_what_each_kernel_takes() -> None:
    """Never N x N but for the mask: a boolean one is turned into numbers, and the memory-efficient kernel's rows of 52
    columns are padded to 56."""
    result, sums = 2 * 4 * 52 * 8, 2 * 4 * 52 * 4
    assert attended(AMPERE, None, HALF) == [("flash_attention", 2 * result), ("flash_attention", sums)]
    assert attended(HOPPER, None, HALF)[0] == ("cudnn_attention", 2 * result)
    assert attended(AMPERE, None, FLOAT) == [("efficient_attention", 4 * result)]
    numbers = 2 * 52 * 52
    assert attended(HOPPER, (2, 1, 52, 52), HALF)[:2] == [("where", 2 * numbers), ("cudnn_attention", 2 * result)]
    for dtype, size in ((HALF, 2), (FLOAT, 4)):
        assert attended(AMPERE, (2, 1, 52, 52), dtype) == [
            ("where", size * numbers),
            ("constant_pad_nd", size * 2 * 52 * 56),
            ("efficient_attention", size * result),
        ]


def test_attention_within_other_functions_and_autocast_runs_the_same_kernel() -> None:
    """`nn.MultiheadAttention` calls it where no mode looks on; autocast makes it half precision, so flash."""
    with SimulatedCuda(Card("test", 2**30, AMPERE, context_bytes=0)) as cuda, torch.no_grad():
        taken: list[str] = []
        cuda.describe = lambda name, _: taken.append(name)
        layer = torch.nn.MultiheadAttention(64, 4, batch_first=True, device="cuda", dtype=HALF)
        q = torch.zeros(1, 4, 8, 16, device="cuda")
        layer(*[torch.zeros(1, 8, 64, device="cuda", dtype=HALF)] * 3, need_weights=False)
        with torch.autocast("cuda", HALF):
            assert attend(q, q, q).dtype == HALF
        assert taken.count("aten._scaled_dot_product_flash_attention") == 2 * FLASH_RESULTS
    assert torch.nn.functional.scaled_dot_product_attention is attend


@pytest.mark.parametrize("dtype", [FLOAT, BRAIN])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(("mask", "is_causal"), [(None, False), (None, True), (torch.bool, False), (FLOAT, False)])
def test_mathematics_take_what_a_real_run_does(
    mask: torch.dtype | None, is_causal: bool, kv_heads: int, dtype: torch.dtype
) -> None:
    """To the byte what the profiler counts on the CPU, where the same C++ runs and no mode looks on."""

    def tensors() -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        k = torch.zeros(2, kv_heads, 65, 16, dtype=dtype)
        made = None if mask is None else torch.ones(2, 1, 65, 65, dtype=mask if mask == torch.bool else dtype)
        return torch.zeros(2, 4, 65, 16, dtype=dtype), k, k.clone(), made

    real = tensors()
    with torch.inference_mode(), sdpa_kernel(MATH), profiled() as profile:
        attend(*real, is_causal=is_causal, enable_gqa=kv_heads != 4)
    events = profile.profiler.kineto_results.events()
    peak_bytes = max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))

    cuda = SimulatedCuda(Card("test", 2**30, context_bytes=0), cublas_workspace=False, device=torch.device("cpu"))
    with cuda, torch.inference_mode():
        q, k, v, made = tensors()
        gc.collect()
        before_bytes = cuda.allocator.requested_bytes
        cuda.allocator.reset_peak()
        added = made
        if made is not None and made.dtype == torch.bool:
            added = torch.where(made, 0.0, torch.scalar_tensor(float("-inf"), dtype=dtype))
        with _MathOnCuda():  # type: ignore[no-untyped-call]
            torch.ops.aten._scaled_dot_product_attention_math(q, k, v, added, 0.0, is_causal, enable_gqa=kv_heads != 4)
        assert cuda.allocator.stats.requested_bytes.peak - before_bytes == peak_bytes


def profiled() -> Any:
    return torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    )
