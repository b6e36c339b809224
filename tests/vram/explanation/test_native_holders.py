"""Holders that no Python object refers to: autograd graphs, and what objects of native code keep."""

from __future__ import annotations

import gc
import io
import re
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from vram.explanation.holders import autograd, holder, holders, survey
from vram.explanation.holders.torch_private import check_torch

GLOBAL: list[Any] = []
IN_GLOBAL = rf"list `GLOBAL` \(1 item\), global of module {re.escape(__name__)}$"
WEIGHT = torch.ones(4, requires_grad=True)


@pytest.fixture(autouse=True)
def _empty() -> Iterator[None]:
    yield
    GLOBAL.clear()
    WEIGHT.grad = None


def of(make: Callable[[torch.Tensor], object]) -> str:
    """The words for the holder of a tensor that `make` was given."""

    def storage() -> Any:
        tensor = torch.zeros(64)
        make(tensor)
        return tensor.untyped_storage()

    return holder(storage())


def put(value: object) -> None:
    GLOBAL.append(value)


class Shift(torch.nn.Module):
    """Tracing makes a constant of the table."""

    table: list[torch.Tensor] = []  # noqa: RUF012 - emptied after each use

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table[0]


def traced(tensor: torch.Tensor) -> Any:
    Shift.table.append(tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch.jit's deprecation
        script = torch.jit.trace(Shift(), torch.ones(64))  # type: ignore[no-untyped-call]
    Shift.table.clear()
    return script


def traced_function(tensor: torch.Tensor) -> Any:
    Shift.table.append(tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function = torch.jit.trace(lambda x: x + Shift.table[0], torch.ones(64))  # type: ignore[no-untyped-call]
    Shift.table.clear()
    return function


def future(value: object) -> Any:
    done: torch.futures.Future[Any] = torch.futures.Future()
    done.set_result(value)
    return done


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        (np.from_dlpack, "NumPy array held by "),
        (lambda t: np.from_dlpack(t)[1:], "NumPy array held by "),
        (torch.utils.dlpack.to_dlpack, "DLPack capsule held by "),
        (lambda t: t[8:].__dlpack__(max_version=(1, 0)), "DLPack capsule held by "),
        (lambda t: torch.from_dlpack(t.__dlpack__()), r"tensor that shares its memory \(DLPack\) held by "),
        (traced, "constant of TorchScript held by attribute `_actual_script_module` of TopLevelTracedModule in "),
        (
            traced_function,
            r"constant of traced function \w+ \(torch.jit keeps every traced function for good\) held by ",
        ),
        (future, "result of a future held by "),
        (lambda t: future([{"loss": t}]), "result of a future held by "),
    ],
)
def test_what_keeps_it_by_native_code_is_named(keep: Callable[[torch.Tensor], object], words: str) -> None:
    """The object that a user can let go of, and how it keeps the tensor."""
    text = of(lambda tensor: put(keep(tensor)))
    assert re.match(words + IN_GLOBAL, text), text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_loaded_script_s_own_tensors_are_named() -> None:
    """Its parameters and buffers are in native code alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = io.BytesIO()
        torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.BatchNorm1d(8))), file)  # type: ignore[no-untyped-call]
        file.seek(0)
        put(torch.jit.load(file))  # type: ignore[no-untyped-call]
    text = holder(next(GLOBAL[0].buffers()).untyped_storage())
    assert re.match(f"buffer of TorchScript held by {IN_GLOBAL}", text), text


def test_a_traced_function_outlives_its_object() -> None:
    """torch.jit keeps all of them: there is nothing that a user could let go of, and the words say so."""
    text = of(traced_function)
    assert re.match(r"constant of traced function \w+: torch.jit keeps every traced function for good$", text), text


def test_a_consumed_capsule_is_left_alone() -> None:
    """Its memory is another's, and may be gone: only a capsule that still owns its tensor is looked into."""
    capsule = torch.utils.dlpack.to_dlpack(torch.zeros(64))
    put(capsule)
    array = torch.from_dlpack(capsule)
    del array
    assert of(lambda _: None).startswith("nothing that Python's collector can see")


def test_a_work_handle_is_named() -> None:
    """A handle of a collective keeps the tensors that it worked on, long after it is done."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available():
        pytest.skip("this PyTorch has no distributed package")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:

        def reduced(tensor: torch.Tensor) -> object:
            work = distributed.all_reduce(tensor, async_op=True)
            work.wait()
            return work

        text = of(lambda tensor: put(reduced(tensor)))
        assert re.match(f"Work of a collective held by {IN_GLOBAL}", text), text
        GLOBAL.clear()
    finally:
        distributed.destroy_process_group()


def test_autocast_s_cache_is_recognised_and_fills_again() -> None:
    """A block that is never left keeps a cast of every weight that it has seen."""
    weight = torch.nn.Parameter(torch.zeros(8, 8))
    casts: list[Any] = []

    class Casts(torch.utils._python_dispatch.TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten._to_copy.default and args[0].shape == (8, 8):
                casts.append(weakref.ref(result.untyped_storage()))
            return result

    with torch.autocast("cpu", torch.bfloat16), Casts():
        (torch.ones(1, 8) @ weight).sum()
        assert holder(casts[-1]()).startswith("autocast's cache of casted weights")
        assert casts[-1]() is None
        (torch.ones(1, 8) @ weight).sum()
        assert casts[-1]() is not None


def graph(tensor: torch.Tensor) -> torch.Tensor:
    return (WEIGHT * tensor[:4]).sum()


def test_a_gradient_with_a_graph_is_a_cycle_that_is_named() -> None:
    """backward(create_graph=True): what a model made outlives it, and nothing holds it."""
    layer = torch.nn.Linear(8, 8)
    hidden = layer(torch.ones(2, 8)).tanh()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (hidden**2).sum().backward(create_graph=True)
    assert layer.weight.grad is not None
    kept = [hidden, layer.weight, layer.weight.grad]
    storages = [tensor.untyped_storage() for tensor in kept]
    parameter = weakref.ref(layer.weight)
    del layer, hidden, kept
    gc.collect()
    try:
        for text in holders(storages):
            assert re.match(r"a reference cycle in autograd: the gradient of a float32 \[8(, 8)?\] tensor has", text), (
                text
            )
    finally:
        leftover = parameter()
        assert leftover is not None
        leftover.grad = None


def test_the_graph_of_a_held_parameter_s_gradient_is_named() -> None:
    """The model lives on: its gradient keeps what the step computed."""
    layer = torch.nn.Linear(8, 8)
    put(layer)
    hidden = layer(torch.ones(2, 8)).tanh()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (hidden**2).sum().backward(create_graph=True)
    storage = hidden.untyped_storage()
    del hidden, layer
    text = holder(storage)
    GLOBAL[0].zero_grad()
    words = r"autograd graph \(\w+\) of the gradient of a tensor held by parameter `\w+` of Linear in list `GLOBAL`"
    assert re.match(words, text), text


class Masked(torch.autograd.Function):
    """Puts a tensor on `ctx`."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        ctx.mask = mask
        return hidden * 2

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0], None


def test_what_hangs_on_a_node_within_a_graph_is_named_to_the_end() -> None:
    """The chain of objects ends at the node, and the graph leads on to the loss that is kept."""
    text = of(lambda tensor: put((Masked.apply(WEIGHT, tensor).exp() + 1).sum()))  # type: ignore[no-untyped-call]
    words = r"attribute `mask` of MaskedBackward, autograd graph \(MaskedBackward\) of a tensor held by "
    assert re.match(words + IN_GLOBAL, text), text


def test_saved_tensors_are_not_unpacked() -> None:
    """Hooks of a user may compute everything anew, as checkpointing does; what was packed is looked at as it is."""

    def never(_: object) -> torch.Tensor:
        raise AssertionError("unpacked")

    def step(tensor: torch.Tensor) -> torch.Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: ("packed", saved.detach()), never):
            return graph(tensor)

    text = of(lambda tensor: put(step(tensor)))
    assert re.match(rf"autograd graph \(MulBackward0\) of a tensor held by {IN_GLOBAL}", text), text


def test_many_large_graphs_hide_none() -> None:
    """150 losses of 200 operations each are more than 20,000 nodes: each graph is looked at by itself."""

    def loss() -> tuple[Any, torch.Tensor]:
        hidden = WEIGHT
        for _ in range(100):
            hidden = (hidden * 1.01).tanh()
        return hidden.untyped_storage(), hidden.sum()

    kept = [loss() for _ in range(150)]
    storages = [kept[index][0] for index in (0, 75, 149)]
    put([total for _, total in kept])
    del kept
    words = r"autograd graph \(TanhBackward0\) of a tensor held by list \(150 items\) in " + IN_GLOBAL
    for text in holders(storages):
        assert re.match(words, text), text


def below_many_nodes() -> Any:
    """The storage of a result that is 200 nodes below the one that is kept."""
    result = WEIGHT.tanh()
    storage = result.untyped_storage()
    for _ in range(200):
        result = result + 1
    put(result)
    return storage


def test_a_graph_larger_than_its_share_is_searched_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that one tensor's turn left are searched after all tensors' turns."""
    monkeypatch.setattr(autograd, "MOST_OF_ONE", 50)
    text = holder(below_many_nodes())
    assert re.match(rf"autograd graph \(TanhBackward0\) of a tensor held by {IN_GLOBAL}", text), text


@pytest.mark.parametrize(("of_what", "limit", "most"), [(autograd, "MOST_NODES", 100), (survey, "MOST_OBJECTS", 10)])
def test_a_search_that_was_cut_short_does_not_accuse_native_code(
    of_what: Any, limit: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be a holder in what it did not look at."""
    monkeypatch.setattr(of_what, limit, most)
    assert holder(below_many_nodes()).startswith("not known: the search was cut short")


def test_one_walk_serves_all_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing the objects of a process takes most of the time: once for eight tensors, whoever keeps them."""
    calls = []
    listed = gc.get_objects
    looked = gc.get_referrers
    monkeypatch.setattr(gc, "get_objects", lambda: calls.append("objects") or listed())
    monkeypatch.setattr(gc, "get_referrers", lambda *objects: calls.append("referrers") or looked(*objects))
    tensors = [torch.full((4,), float(number)) for number in range(8)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    GLOBAL.extend(tensors[:3])
    GLOBAL.append((WEIGHT * tensors[3]).sum())
    GLOBAL.append(tensors[4].numpy())
    del tensors
    text = holders(storages)
    assert calls.count("objects") == 1
    assert calls.count("referrers") <= 6
    assert sum("list `GLOBAL`" in words for words in text) == 5
    assert [words.startswith("nothing that Python's collector can see") for words in text] == [False] * 5 + [True] * 3


def test_a_loss_in_a_local_is_named_by_it() -> None:
    """A running function's own variable is a name, for a graph as for a tensor."""
    weight = torch.ones(4, requires_grad=True)
    hidden = weight * 3
    saved = hidden.untyped_storage()
    loss = (hidden**2).sum()
    del hidden
    assert re.match(r"autograd graph \(PowBackward0\) of a tensor held by local `loss` of test_a_loss", holder(saved))
    assert loss.requires_grad


def test_a_torch_that_lacks_a_private_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release without what the search reads is one error with its name, not a holder that is not found."""
    check_torch()
    monkeypatch.delattr(torch._C, "_storage_Use_Count")
    with pytest.raises(ImportError, match=r"which lacks torch\._C\._storage_Use_Count$"):
        check_torch()
