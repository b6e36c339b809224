"""Results of operations that came before are made again without running them, and are the same in everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vram.simulated.context import SimulatedCuda
from vram.simulated.fake_results import FakeResults, check_results, new_fakes

TIMES = 4  # the first is run, the second is looked up in PyTorch's cache, the others are made


class Operands:
    """Tensors of all kinds that decide what a result is."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.empty(6, 4, device="cuda"))
        self.x = torch.empty(2, 3, 4, device="cuda")
        self.wide = torch.empty(8, 12, device="cuda")[:, ::3]
        self.complex = torch.empty(3, 4, device="cuda", dtype=torch.complex64)
        self.numbers = torch.empty(3, device="cuda", dtype=torch.int32)


OPERATIONS: dict[str, Callable[[Operands], Any]] = {
    "a view of a parameter": lambda its: its.weight.t(),
    "a product, and views": lambda its: torch.nn.functional.linear(its.x, its.weight),
    "of a part": lambda its: its.wide[1:] + 1,
    "a part of a part": lambda its: its.wide[1:].transpose(0, 1)[1],
    "of a list": lambda its: torch.cat([its.x, its.x], dim=1),
    "several": lambda its: its.x.split(2, dim=1),
    "several that are new": lambda its: torch.var_mean(torch.nn.functional.layer_norm(its.x, (4,)), 0),
    "in place": lambda its: its.x.add_(1),
    "a number": lambda its: its.x.is_contiguous(),
    "conjugate": lambda its: its.complex.conj() * 2,
    "not conjugate": lambda its: its.complex * 2,
    "by a whole number": lambda its: its.numbers * 2,
    "by a fraction": lambda its: its.numbers * 2.0,
    "by a truth": lambda its: its.numbers * True,
    "expanded": lambda its: its.numbers.expand(5, 3),
    "a mask": lambda its: (its.x > 0).all(),
    "new": lambda _: torch.zeros(3, device="cuda"),
    "new, of half precision": lambda _: torch.zeros(3, device="cuda", dtype=torch.float16),
}


def looks(made: Any, operands: Operands) -> Any:
    """All that tells one result from another."""
    if not isinstance(made, Tensor):
        return [looks(each, operands) for each in made] if isinstance(made, list | tuple) else (type(made), made)
    same_memory = [
        name for name, each in vars(operands).items() if each.untyped_storage()._cdata == made.untyped_storage()._cdata
    ]
    return (
        *(made.shape, made.stride(), made.storage_offset(), made.dtype, made.device, made.requires_grad),
        *(made.is_conj(), made.is_inference(), made.is_leaf, made._is_view(), made.untyped_storage().nbytes()),
        *(str(torch._C._dispatch_keys(made)), same_memory, sorted(vars(made))),
    )


@pytest.mark.parametrize("inference", [False, True])
def test_what_is_made_again_looks_as_what_was_run(inference: bool) -> None:
    """In one process, one after the other, so that one operation's result could be taken for another's."""
    with SimulatedCuda("A10") as cuda:
        operands = Operands()
        for work in OPERATIONS.values():  # a simulation without any
            cuda._mode.cache_enabled = False
            with torch.inference_mode(inference):
                expected = looks(work(operands), operands)
                cuda._mode.cache_enabled = True
                assert [looks(work(operands), operands) for _ in range(TIMES)] == [expected] * TIMES


def test_as_much_memory_is_taken() -> None:
    """Requests of each round are those of the first, of which nothing is made again."""
    with SimulatedCuda("A10") as cuda:
        cuda.take_workspace()
        operands, sizes = Operands(), []
        for _ in range(TIMES):
            rounds: list[int] = []
            cuda.allocator.observer = lambda action, block, into=rounds: into.append(block.requested if block else 0)
            with torch.no_grad():
                for work in OPERATIONS.values():
                    work(operands)
            cuda.allocator.observer = None
            sizes.append(rounds)
    assert sizes[0]
    assert sizes == [sizes[0]] * TIMES


def test_what_an_operation_follows_from_beside_its_arguments_counts() -> None:
    """A default dtype that changes between two calls gives another result."""
    with SimulatedCuda("A10"):
        numbers = torch.empty(3, device="cuda", dtype=torch.int32)
        assert {(numbers / 2).dtype for _ in range(TIMES)} == {torch.float32}
        torch.set_default_dtype(torch.float64)
        try:
            assert {(numbers / 2).dtype for _ in range(TIMES)} == {torch.float64}
        finally:
            torch.set_default_dtype(torch.float32)


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A stranger's mode."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_another_mode_sees_what_is_made_again() -> None:
    """A mode from before the simulation sees each operation, as often as it comes."""
    with SimulatedCuda("A10") as cuda:
        x = torch.empty(1000, device="cuda")
        for _ in range(TIMES):
            x.neg()
    counting = Counting()
    with counting, cuda:
        for _ in range(TIMES):
            x.neg()
    assert counting.names == ["aten.neg.default"] * TIMES


def test_most_of_a_model_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the third time on nothing of a layer is run by PyTorch's rules."""
    with SimulatedCuda("A10") as cuda:
        layer = torch.nn.TransformerEncoderLayer(16, 2, 32, device="cuda").eval()
        x = torch.empty(2, 5, 16, device="cuda")
        with torch.inference_mode():
            for _ in range(2):
                layer(x)
            monkeypatch.setattr(type(cuda._mode), "_dispatch_impl", None)
            assert layer(x).shape == x.shape


def test_another_pytorch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose cache has other names, or whose fake tensors are made otherwise, says so at once."""
    check = check_results.__wrapped__
    check()
    monkeypatch.setattr("vram.simulated.fake_results.new_fakes", lambda *args: new_fakes(*args, inference=True))
    with pytest.raises(RuntimeError, match="fake tensors that are not as those of torch"):
        check()
    monkeypatch.delattr("torch._subclasses.fake_tensor.FakeTensorMode._cache_key")
    with pytest.raises(RuntimeError, match=r"reads _cache_key of fake tensors, which torch .* lacks"):
        check()


def test_tensors_of_another_simulation_have_no_key() -> None:
    """A tensor of another mode is no operand whose result may be made."""
    with SimulatedCuda("A10"):
        x = torch.empty(3, device="cuda")
    with SimulatedCuda("A10") as other:
        assert FakeResults(other._mode)._key(torch.ops.aten.neg.default, (x,), {}) is None
