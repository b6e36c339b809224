"""Operations without a figure on a simulated card: refused by name, with the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward
from torch import nn
from torch.func import jacfwd, jvp

from tests.vram.simulated.devices import device
from vram.simulated.known_values import UnknownValue
from vram.simulated.torch_build import check, list_of_operations


def on_card(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda")


def forward_mode() -> None:
    with forward.dual_level():
        forward.make_dual(on_card(3), on_card(3))


def sparse() -> torch.Tensor:
    """Made of its parts, which are counted."""
    places = torch.zeros(2, 3, dtype=torch.int64).cuda()
    return torch.sparse_coo_tensor(places, on_card(3), (9, 9), check_invariants=False)


def compressed(**options: Any) -> torch.Tensor:
    return torch.sparse_csr_tensor(torch.tensor([0, 1, 2]), torch.tensor([0, 1]), torch.ones(2), (2, 2), **options)


def back_through_attention() -> None:
    x = on_card(1, 8, 2, 16).requires_grad_()
    options = {"dropout_p": 0.0, "custom_mask_type": 0, "compute_log_sumexp": True, "scale": 1.0}
    result = torch.ops.aten._efficient_attention_forward(x, x, x, None, None, None, None, None, **options)
    result[0].sum().backward()


def back_through_sparse_gradient() -> None:
    weight = on_card(9, 4).requires_grad_()
    nn.functional.embedding(torch.zeros(3, dtype=torch.int64).cuda(), weight, sparse=True).sum().backward()


KERNEL = "template <typename T> T doubled(T x) { return x + x; }"
KERNELS = "template <typename T> void doubled(T x, T& y) { y = x + x; }"
UNMODELLED: dict[str, Callable[[], Any]] = {
    "quantised by tensor": lambda: torch.quantize_per_tensor(on_card(8), 0.1, 0, torch.qint8),
    "quantised by tensor, in main memory": lambda: torch.quantize_per_tensor(torch.randn(8), 0.1, 0, torch.qint8),
    "quantised by channel": lambda: torch.quantize_per_channel(
        on_card(2, 8), torch.ones(2), torch.zeros(2), 0, torch.qint8
    ),
    "quantised, empty": lambda: torch._empty_affine_quantized([8], scale=0.1, zero_point=0, dtype=torch.qint8),
    "jvp": lambda: jvp(nn.functional.gelu, (on_card(3),), (on_card(3),)),
    "jacfwd": lambda: jacfwd(torch.sin)(on_card(3)),
    "forward mode": forward_mode,
    "a gradient of torch.func": lambda: torch.func.grad(torch.sin)(on_card(3).sum()),
    "no caching": lambda: torch.cuda.memory.caching_allocator_enable(False),
    "no caching for a while": lambda: torch.cuda.memory.caching_allocator_disabled(),
    "another allocator": lambda: torch.cuda.memory.change_current_allocator(None),  # type: ignore[arg-type]
    "another allocator's library": lambda: torch.cuda.memory.CUDAPluggableAllocator("a.so", "malloc", "free"),
    "a pool of its own": lambda: torch.cuda.use_mem_pool(None),  # type: ignore[arg-type]
    "a kernel of the jiterator": lambda: torch.cuda.jiterator._create_jit_fn(KERNEL)(on_card(3)),
    "one with results by reference": lambda: torch.cuda.jiterator._create_multi_output_jit_fn(KERNELS, 1)(on_card(3)),
    "a copy of a sparse tensor": lambda: sparse().clone(),
    "a sum of sparse tensors": lambda: sparse() + sparse(),
    "sparse halves": lambda: sparse().half(),
    "a transposed sparse tensor": lambda: sparse().t(),
    "a sparse gradient": back_through_sparse_gradient,
    "compressed rows": lambda: compressed(device="cuda"),
    "back through attention by a kernel's name": back_through_attention,
    "back through groups without elements": lambda: nn.functional.group_norm(
        on_card(4, 6, 0).requires_grad_(), 3
    ).backward(on_card(4, 6, 0)),
    "a split where a tensor says": lambda: on_card(8).tensor_split(torch.tensor([2, 5])),
}


@pytest.mark.parametrize("ask", UNMODELLED.values(), ids=UNMODELLED)
def test_what_it_does_not_model_it_says_and_where_to_go(ask: Callable[[], Any]) -> None:
    """Never a wrong figure in silence, nor a refusal without a way out."""
    with device(), pytest.raises(NotImplementedError, match="measure on a GPU"):
        ask()


@pytest.mark.parametrize("loss", [torch.ctc_loss, nn.functional.ctc_loss], ids=["torch", "nn.functional"])
def test_the_refusal_of_a_loss_by_cudnn_names_the_loss(loss: Callable[..., torch.Tensor]) -> None:
    """And not its question to cuDNN. In main memory it runs."""
    lengths = torch.full((3,), 5), torch.full((3,), 2)
    with device():
        with pytest.raises(NotImplementedError, match=r"does not model torch\S*\.ctc_loss, at \S*test_refusals\.py"):
            loss(on_card(5, 3, 9).log_softmax(2), torch.ones(3, 2, dtype=torch.int64), *lengths)
        assert loss(torch.zeros(5, 3, 9).log_softmax(2), torch.ones(3, 2, dtype=torch.int64), *lengths).isfinite().all()


def test_a_rule_of_torch_s_that_fails_is_no_error_of_the_program() -> None:
    """An error that a kernel would raise itself stays as it is."""
    with device(), pytest.raises(RuntimeError, match="broadcast") as raised:
        on_card(3) + on_card(4)
    assert not isinstance(raised.value, NotImplementedError)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_what_was_quantised_outside_does_not_come_to_the_card() -> None:
    """It would be there in the dtype that it had before."""
    quantised = torch.quantize_per_tensor(torch.zeros(8), 0.1, 0, torch.qint8)
    with device(), pytest.raises(NotImplementedError, match="measure on a GPU"):
        quantised.cuda()


SETTERS: dict[str, Callable[[str], Any]] = {
    "of torch.cuda": lambda text: torch.cuda.memory._set_allocator_settings(text),
    "of every accelerator": lambda text: torch._C._accelerator_setAllocatorSettings(text),
}


@pytest.mark.parametrize("set_to", SETTERS.values(), ids=SETTERS)
def test_settings_by_call_are_refused_as_those_of_the_environment(set_to: Callable[[str], Any]) -> None:
    """Inside, at the call; before, at the start. What changes no figure passes."""
    before = torch._C._accelerator_getAllocatorSettings()
    with device():
        set_to("backend:native, roundup_power2_divisions:2")
        assert on_card(3, 2**19).nbytes == 6 * 2**20
        assert torch.cuda.max_memory_allocated() == 6 * 2**20
        with pytest.raises(ValueError, match="max_split_size_mb must be set before anything is allocated"):
            set_to("max_split_size_mb:32")
        with pytest.raises(ValueError, match=r"got backend:cudaMallocAsync .* measure on a GPU"):
            set_to("backend:cudaMallocAsync")
    try:
        torch._C._accelerator_setAllocatorSettings("throw_on_cudamalloc_oom:True")
        with pytest.raises(ValueError, match=r"^torch.cuda.memory._set_allocator_settings: .*throw_on_cuda"):
            device()
        torch._C._accelerator_setAllocatorSettings("throw_on_cudamalloc_oom:False")
        device()
    finally:
        torch._C._accelerator_setAllocatorSettings(before)


ASKED_OF_ANOTHER: dict[str, Callable[[], object]] = {
    name: lambda name=name: getattr(torch.cuda, name)(1)  # type: ignore[misc]
    for name in (
        *("get_device_capability", "get_device_name", "get_device_properties", "mem_get_info", "memory_allocated"),
        *("max_memory_allocated", "max_memory_reserved", "memory_reserved", "memory_stats", "reset_peak_memory_stats"),
        "synchronize",
    )
}


@pytest.mark.parametrize("ask", ASKED_OF_ANOTHER.values(), ids=ASKED_OF_ANOTHER)
def test_another_card_has_no_figures(ask: Callable[[], object]) -> None:
    """And not those of the one."""
    with device(), pytest.raises(RuntimeError, match="invalid device ordinal: 1, of one simulated card"):
        ask()


def test_figures_that_it_has_not_have_no_default_either() -> None:
    """0 would be one."""
    with device():
        stats = torch.cuda.memory_stats(0)
        assert stats.get("allocated_bytes.all.peak", 1) == 0
        with pytest.raises(KeyError, match="num_ipc_handles"):
            stats.get("num_ipc_handles", 0)


def test_there_is_one_card_at_a_time() -> None:
    """Both would count the same bytes; after the first, the second is there."""
    first, second = device(), device()
    with first, pytest.raises(RuntimeError, match="there is one card at a time"), second:
        pass
    with second, second:
        kept = on_card(4)
        assert (first.allocator.requested_bytes, second.allocator.requested_bytes) == (0, kept.nbytes)


def test_a_number_on_the_card_is_the_same_text_as_in_main_memory() -> None:
    """A key of a dictionary, say; where it is not known there is none."""
    with device():
        keys = {f"layer {layer}" for layer in torch.arange(3, device="cuda")}
        assert keys == {"layer 0", "layer 1", "layer 2"}
        with pytest.raises(UnknownValue, match="avoid the read"):
            f"{on_card(1)[0]}"


def test_scratch_memory_of_another_library_s_operation_is_said_not_to_be_counted() -> None:
    """Fake tensors run what says how its result looks; a warning names the operation and the line."""

    @torch.library.custom_op("vram_tests::doubled", mutates_args=())
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return x.sin() * 2

    doubled.register_fake(torch.empty_like)
    with device(), pytest.warns(UserWarning, match=r"counts what vram_tests\.doubled\S* at .*test_refusals\.py:\d+ "):
        doubled(on_card(8))


def test_modules_are_not_exported_inside() -> None:
    """Its tracing makes tensors that no card has, and they would be counted."""
    with device(), pytest.raises(NotImplementedError, match="run the module itself"):
        torch.export.export(nn.Linear(3, 3, device="cuda"), (on_card(1, 3),))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_modules_are_not_traced_inside() -> None:
    """A module that was traced outside runs."""
    layer = nn.Linear(3, 3).eval()
    traced = torch.jit.trace(layer, torch.zeros(1, 3))  # type: ignore[no-untyped-call]
    with device(), torch.no_grad():
        assert traced.to("cuda")(on_card(1, 3)).shape == (1, 3)
        with pytest.raises(NotImplementedError, match=r"torch\.jit\.trace checks: trace outside, or run the module"):
            torch.jit.trace(layer.to("cuda"), on_card(1, 3))  # type: ignore[no-untyped-call]


@pytest.mark.filterwarnings("ignore:`torch.jit")  # by what torch.compile imports
def test_what_was_compiled_outside_runs_eagerly_with_a_warning() -> None:
    """As what is compiled inside; a function that is never compiled warns of nothing."""
    compiled = torch.compile(lambda x: x.sin() * 2, backend="eager")
    with device():
        x = on_card(8)
        with pytest.warns(UserWarning, match="compiled code allocates otherwise") as warned:
            compiled(x)
        assert len(warned) == 1
        torch.compiler.disable(lambda x: x * 2)(x)


def test_what_torch_does_not_compose_is_said_at_the_start() -> None:
    """Taken apart, it would end the process."""
    with pytest.raises(RuntimeError, match=r"takes aten\._trilinear\.default apart, which torch \S+ does not compose"):
        check([torch.ops.aten._trilinear.default])


def test_a_torch_without_its_list_of_operations_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """From it is read which operands a card refuses: no simulation begins without, and the file is named."""
    list_of_operations.cache_clear()
    monkeypatch.setattr("vram.simulated.torch_build.find_spec", lambda _name: None)
    with pytest.raises(RuntimeError, match=r"reads torchgen/.*native_functions\.yaml, which torch .* lacks"):
        check(())
