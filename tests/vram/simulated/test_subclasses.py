"""Subclasses of Tensor that are made of tensors, as quantised weights are: what their parts hold is what counts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map_only

from tests.vram.simulated.devices import device

_aten = torch.ops.aten
HALF_BYTES = 1024 * 1024 * 2
PACKED_BYTES = 1024 * 1024 + 1024 * 2  # a byte an element, and a scale in half precision a row


class Packed(torch.Tensor):
    """A weight as int8 with a scale a row; any other operation than these takes it apart first."""

    packed: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, packed: torch.Tensor, scale: torch.Tensor) -> Packed:
        made = torch.Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
        whole: Packed = made(cls, packed.shape, dtype=scale.dtype, device=packed.device)
        whole.packed, whole.scale = packed, scale
        return whole

    def __init__(self, *_: Any) -> None:
        """Nothing: `__new__` has made it."""

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["packed", "scale"], None

    @classmethod
    def __tensor_unflatten__(cls, parts: Any, *_: Any) -> Packed:
        return cls(parts["packed"], parts["scale"])

    @classmethod
    def of(cls, weight: torch.Tensor) -> Packed:
        scale = weight.abs().amax(1, keepdim=True) / 127
        return cls((weight / scale).round().to(torch.int8), scale)

    def whole(self) -> torch.Tensor:
        return self.packed.to(self.scale.dtype) * self.scale

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (_aten.detach.default, _aten.clone.default, _aten._to_copy.default):
            device = {"device": kwargs["device"]} if kwargs.get("device") else {}
            return cls(*(func(part, *args[1:], **device) for part in (args[0].packed, args[0].scale)))
        return func(*tree_map_only(Packed, Packed.whole, args), **kwargs)


def weight(where: str = "cuda") -> torch.Tensor:
    return torch.ones(1024, 1024, dtype=torch.half, device=where)


def as_parameter() -> object:
    return torch.nn.Parameter(Packed.of(weight()), requires_grad=False)


def often_detached() -> object:
    packed = Packed.of(weight())
    return [packed.detach() for _ in range(5)]


def moved_in_a_module() -> object:
    module = torch.nn.Linear(1024, 1024, bias=False, dtype=torch.half)
    module.weight = torch.nn.Parameter(Packed.of(weight("cpu")), requires_grad=False)
    return module.to("cuda")


def in_a_module_that_ran() -> object:
    module: Any = torch.nn.Linear(1024, 1024, bias=False, dtype=torch.half, device="meta")
    module.weight = as_parameter()
    module(torch.ones(4, 1024, dtype=torch.half, device="cuda"))
    return module


@pytest.mark.parametrize("made", [as_parameter, often_detached, moved_in_a_module, in_a_module_that_ran])
def test_packed_weights_count_what_their_parts_hold(made: Callable[[], object]) -> None:
    """Half of what the weight has in half precision, and its scales, wherever it went."""
    with device():
        kept = made()
        assert torch.cuda.memory_allocated() == PACKED_BYTES
        del kept
        assert torch.cuda.memory_allocated() == 0


def test_a_copy_has_parts_of_its_own() -> None:
    """As a subclass whose clone is one too is copied by torch itself."""
    with device():
        packed = Packed.of(weight())
        other = copy.deepcopy(packed)
        assert (type(other), torch.cuda.memory_allocated()) == (Packed, 2 * PACKED_BYTES)


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_product_needs_the_whole_weight_meanwhile(context: Callable[[], Any]) -> None:
    """The weight as its own type, which is made of its parts: the half and the product of half and scale."""
    with device(), context():
        packed = Packed.of(weight())
        rows = torch.ones(4, 1024, dtype=torch.half, device="cuda")
        torch.cuda.reset_peak_memory_stats()
        torch.nn.functional.linear(rows, packed)
        assert torch.cuda.max_memory_allocated() == PACKED_BYTES + rows.nbytes + 2 * HALF_BYTES


@pytest.mark.parametrize("kind", [torch.Tensor, torch.nn.Parameter])
def test_a_subclass_that_is_a_tensor_is_refused(kind: type[torch.Tensor]) -> None:
    """It would hide the simulated tensor: refused, with its name and the line."""
    own = type("Own", (kind,), {})
    with (
        device(),
        pytest.raises(NotImplementedError, match=r"made of tensors .* measure on a GPU; Own at .*test_subc"),
    ):
        torch.Tensor._make_subclass(own, weight())  # type: ignore[attr-defined]
    real = torch.ones(3)
    with device():  # is none of the card's
        assert type(torch.Tensor._make_subclass(own, real)) is own  # type: ignore[attr-defined]
