"""A tracer knows of each storage: who made it, when, and whether it is alive."""

from __future__ import annotations

import gc
import inspect
import threading
import weakref
from typing import Any

import pytest
import torch

from vram.explanation.allocations import Allocation, Event, at_peak, unclaimed
from vram.explanation.tracer import CudaTracer, TensorTracer, tracer_for
from vram.frames import Frame, telling_frame
from vram.torch_hooks.storages import storages_of


def here() -> int:
    """The line of the caller."""
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def test_a_new_storage_is_known_by_line_operation_shape_and_run() -> None:
    """The line is the test's own, not torch's; the op is the one PyTorch dispatched."""
    with TensorTracer() as tracer, tracer.watching(3):
        kept, line = torch.zeros(2, 5, dtype=torch.float16), here()
        (made,) = tracer.alive()
    assert (made.n_bytes, made.op, made.shape, made.dtype) == (kept.nbytes, "aten.zeros", (2, 5), "float16")
    assert made.run == 3
    assert made.line is not None
    assert (made.line.filename, made.line.line) == (__file__, line)


def test_a_library_line_is_told_with_the_line_that_called_it() -> None:
    """torch itself is left out, also where its Python makes the tensor."""
    with TensorTracer() as tracer, tracer.watching(0):
        out, line = torch.nn.functional.linear(torch.ones(3, 4), torch.ones(2, 4)), here()
        made = [one for one in tracer.alive() if one.n_bytes == out.nbytes]
    assert [one.line.line for one in made if one.line is not None] == [line]
    frames = (Frame("/x/site-packages/torch/nn.py", 1, "a"), Frame("/x/site-packages/lib/m.py", 2, "b"))
    library = Allocation(4, "aten.add", (1,), "float32", (frames[1], Frame("/home/me/run.py", 3, "main")), run=0)
    assert str(library.line) == "lib/m.py:2 b"
    assert str(library.caller) == "/home/me/run.py:3 main"


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.clip_grad_norm`:FutureWarning")
def test_what_torch_calls_deprecated_is_told_by_the_line_that_called_it() -> None:
    """torch wraps such a function in typing_extensions' code, which is nobody's line."""
    weight = torch.nn.Parameter(torch.zeros(3))
    weight.grad = torch.ones(3)
    with TensorTracer() as tracer, tracer.watching(0):
        norm, line = torch.nn.utils.clip_grad_norm([weight], 1.0), here()
        made = tracer.alive()
    found = [one for one in made if one.run == 0 and one.n_bytes == norm.nbytes]
    assert found
    assert {(one.line.filename, one.line.line) for one in found if one.line is not None} == {(__file__, line)}


def test_without_a_frame_of_a_user_the_innermost_is_told() -> None:
    """Something is better than nothing; no frames are no line."""
    inside = Frame(torch.__file__, 1, "f")
    assert telling_frame([inside]) is inside
    assert telling_frame([]) is None


def test_views_are_not_new_and_the_dead_are_gone() -> None:
    """A view belongs to its storage; what was freed is not alive, and what was there before is told apart."""
    older = torch.zeros(7)
    with TensorTracer() as tracer, tracer.watching(0):
        view = older[1:]
        temporary = torch.ones(9)
        assert [one.shape for one in tracer.alive()] == [(9,)]
        del temporary
        assert tracer.alive() == []
        assert any(one.shape == (7,) for one in tracer.alive_before())
        assert view.shape == (6,)


def test_a_resized_storage_is_the_resizing_line_s() -> None:
    """Growing in place counts as made anew, by the line that did it."""
    tensor = torch.zeros(1013)
    with TensorTracer() as tracer, tracer.watching(0):
        tensor.resize_(10_100)
        (made,) = tracer.alive()
        assert [one.n_bytes for one in tracer.at_peak() if one.shape in ((1013,), (10_100,))] == [40_400]
    assert (made.n_bytes, made.op) == (40_400, "aten.resize_")


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_followed_by_their_elements(layout: torch.layout) -> None:
    """One that is there when the trace begins, and one that is made: they have no shape of their own."""
    before = torch.nested.nested_tensor([torch.zeros(100), torch.zeros(156)], layout=layout)
    with TensorTracer() as tracer:
        assert (256,) in [one.shape for one in tracer.alive_before()]
        with tracer.watching(0):
            made = torch.nested.nested_tensor([torch.zeros(3), torch.zeros(5)], layout=layout)
        assert [one.n_bytes for one in tracer.alive() if one.shape == (8,)] == [32]
    assert before.is_nested
    assert made.is_nested


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize(("make", "parts"), [(torch.Tensor.to_sparse, 2), (torch.Tensor.to_sparse_csr, 3)])
def test_sparse_tensors_are_followed_by_their_parts(make: Any, parts: int) -> None:
    """Made within one operation, which returns none of them by itself."""
    dense = torch.ones(3, 3)
    with TensorTracer() as tracer, tracer.watching(0):
        kept = make(dense)
        made = tracer.alive()
    assert [one.shape for one in made] == [(3, 3)] * parts
    assert sum(one.n_bytes for one in made) == sum(storage.nbytes() for storage in storages_of(kept))


class Wrapper(torch.Tensor):
    """Has its bytes in a tensor of its own, which its operations work on."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapper:
        made: Wrapper = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls(func(*(arg.inner if isinstance(arg, cls) else arg for arg in args), **(kwargs or {})))


def test_what_a_subclass_or_a_higher_order_operator_makes_is_seen() -> None:
    """The meter counts it, so its line must be told too."""
    wrapped = Wrapper(torch.ones(7))
    with TensorTracer() as tracer, tracer.watching(0):
        twice = wrapped * 2
        chosen = torch.cond(torch.tensor(True), lambda x: x + 1, lambda x: x - 1, (torch.ones(5),))
        made = {one.shape: one.op for one in tracer.alive()}
    assert made[7,] == "aten.mul"
    assert made[5,] == "cond"
    del twice, chosen


def test_a_tensor_that_answers_nothing_is_passed_over() -> None:
    """The parameters of a lazy module have no storage before their first batch."""
    lazy = torch.nn.LazyLinear(3)
    with TensorTracer() as tracer, tracer.watching(0):
        kept = torch.zeros(4)
        assert [one.n_bytes for one in tracer.alive()] == [kept.nbytes]
    del lazy


def test_threads_started_meanwhile_are_followed() -> None:
    """A dispatch mode sees one thread; the tracer sees those that start while it watches."""
    kept: list[torch.Tensor] = []
    run = threading.Thread.run
    with TensorTracer() as tracer, tracer.watching(0):
        thread = threading.Thread(target=lambda: kept.append(torch.zeros(256)))
        thread.start()
        thread.join()
        assert [one.n_bytes for one in tracer.alive()] == [1024]
    assert threading.Thread.run is run


def test_results_in_tuples_and_dictionaries_and_inputs_from_outside_are_seen() -> None:
    """A storage no operation made is met at its first use, and says so."""
    with TensorTracer() as tracer, tracer.watching(0):
        outside = torch.frombuffer(bytearray(40), dtype=torch.uint8)
        values, indices = torch.topk(outside, 2)
        ops = {one.n_bytes: one.op for one in tracer.alive()}
    assert ops[values.nbytes] == ops[indices.nbytes] == "aten.topk"
    assert ops[40].startswith("first used by aten.") or ops[40].startswith("aten.")


@pytest.mark.parametrize("make", [torch.tensor, torch.as_tensor, torch.FloatTensor], ids=lambda make: make.__name__)
def test_a_tensor_made_from_data_says_so(make: Any) -> None:
    """Not the name of an operation that nobody called."""
    with TensorTracer() as tracer, tracer.watching(0):
        kept = make([1.0, 2.0])
        (made,) = tracer.alive()
    assert (made.n_bytes, made.op) == (kept.nbytes, "tensor from data")


def test_marks_are_counted_within_a_run() -> None:
    """An allocation after the second "token" says so; a new run starts again."""
    with TensorTracer() as tracer:
        kept = []
        for run in range(2):
            with tracer.watching(run):
                kept.append(torch.zeros(1))
                for _ in range(2):
                    tracer.reached("token")
                kept.append(torch.zeros(1))
        assert [(one.run, one.mark) for one in tracer.alive()] == [(0, ""), (0, "token 1"), (1, ""), (1, "token 1")]


def test_a_tracer_keeps_nothing_alive() -> None:
    """Storages go when their owners do, also while tracing, and nothing is followed afterwards."""
    tracer = TensorTracer()
    with tracer:
        with tracer.watching(0):
            tensor = torch.zeros(4)
        gone = weakref.ref(tensor)
        assert tracer.storages([tracer.alive()])[0] is not None
        del tensor
        assert gone() is None
    gc.collect()
    assert list(tracer.living()) == []


def test_the_peak_is_of_what_was_alive_at_once() -> None:
    """Worked out by hand: 5 there, +3, +4, -3, +2 peaks after the second, with 5, 3 and 4 alive."""
    five, three, four, two = (Allocation(n, "", (), "", (), run=0) for n in (5, 3, 4, 2))
    events = [Event("alloc", 1, three), Event("alloc", 2, four), Event("free", 1, three), Event("alloc", 3, two)]
    assert at_peak([(0, five)], events) == [five, three, four]
    assert at_peak([(0, five)], []) == [five]
    assert at_peak([(0, five)], [Event("free", 0, five), Event("alloc", 1, four)]) == [five]


class FakeMemory:
    """`torch.cuda.memory`, as far as the tracer asks it."""

    def __init__(self, snapshot: dict[str, Any] | None = None, error: Exception | None = None) -> None:
        self.snapshot, self.error = snapshot, error
        self.calls: list[tuple[Any, dict[str, Any]]] = []

    def _record_memory_history(self, enabled: Any, **how: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append((enabled, how))

    def _snapshot(self) -> Any:
        return self.snapshot


FRAMES = [
    {"filename": torch.__file__, "line": 5, "name": "inner"},
    {"filename": "/home/me/model.py", "line": 7, "name": "attend"},
]
CUDA_SNAPSHOT: dict[str, Any] = {
    "segments": [
        {
            "device": 1,
            "blocks": [
                {"address": 16, "size": 512, "requested_size": 500, "state": "active_allocated", "frames": FRAMES},
                {"address": 528, "size": 512, "requested_size": 400, "state": "active_allocated", "frames": FRAMES},
                {"address": 1040, "size": 512, "requested_size": 300, "state": "inactive", "frames": FRAMES},
                {"address": 1552, "size": 512, "requested_size": 200, "state": "active_allocated", "frames": []},
            ],
        },
        {
            "device": 0,
            "blocks": [
                {"address": 99, "size": 512, "requested_size": 100, "state": "active_allocated", "frames": FRAMES}
            ],
        },
    ],
    "device_traces": [[], []],
}


def test_blocks_of_cuda_that_no_tensor_claims_are_told_by_their_line() -> None:
    """In use, recorded with a stack, on this device, at no tensor's address: one block, with the bytes asked for."""
    (found,) = unclaimed(CUDA_SNAPSHOT, 1, {16})
    assert (found.n_bytes, found.op, found.dtype) == (400, "", "")
    assert str(found.line) == "/home/me/model.py:7 attend"


def test_on_cuda_the_allocator_s_history_is_recorded_and_ended() -> None:
    """History is on with stacks while the tracer is used, off afterwards; its snapshot is the one that is saved."""
    memory = FakeMemory(CUDA_SNAPSHOT)
    with CudaTracer(torch.device("cuda", 1), memory=memory) as tracer:
        assert [enabled for enabled, _ in memory.calls] == ["all"]
        assert memory.calls[0][1]["stacks"] == "python"
        assert [one.n_bytes for one in tracer.alive()] == [500, 400]
        assert tracer.snapshot() is CUDA_SNAPSHOT
    assert [enabled for enabled, _ in memory.calls] == ["all", None]


def test_an_allocator_without_history_leaves_the_tensors() -> None:
    """cudaMallocAsync records none: tensors are followed all the same, and nothing is ended that was not begun."""
    memory = FakeMemory(error=RuntimeError("not supported"))
    with CudaTracer(torch.device("cuda", 0), memory=memory) as tracer:
        assert tracer.alive() == []
        assert tracer.snapshot()["device_traces"] == [[]]
    assert memory.calls == []


def test_the_tracer_of_a_device_follows_that_device() -> None:
    """The CPU's sees no meta tensor; CUDA's has the history."""
    with tracer_for("cpu") as tracer, tracer.watching(0):
        kept = torch.zeros(3, device="meta")
        assert tracer.alive() == []
        assert kept.is_meta
    assert isinstance(tracer_for("cuda:1"), CudaTracer)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_real_card_a_kept_tensor_has_its_line_and_the_history_its_block() -> None:
    """The tensor is told once, by its operation; the snapshot has the same bytes."""
    with tracer_for("cuda:0") as tracer:
        with tracer.watching(0):
            kept = torch.zeros(1000, device="cuda:0")
        made = [one for one in tracer.alive() if one.n_bytes == kept.nbytes]
        blocks = [block for segment in tracer.snapshot()["segments"] for block in segment["blocks"]]
    assert [one.op for one in made] == ["aten.zeros"]
    assert any(block["address"] == kept.data_ptr() and block["requested_size"] == kept.nbytes for block in blocks)
