"""Storages of a simulated card that are shared, set and copied: what a card holds of them, and for how long."""

from __future__ import annotations

import copy
import gc
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.vram.simulated.devices import device
from vram.simulated.context import DEVICE
from vram.simulated.known_values import UnknownValue


def with_itself(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"whole": tensor, "transposed": tensor.t(), "row": tensor[0]}


# A storage of 64 x 64 numbers of 4 bytes is 16,384 bytes.
COPIES: dict[str, tuple[Callable[[torch.Tensor], object], int]] = {
    "of all": (copy.deepcopy, 16_384),
    "of a view from the start": (lambda it: copy.deepcopy(it[:2]), 16_384),
    "of a view from elsewhere": (lambda it: copy.deepcopy(it[2:4]), 16_384),
    "of several that share it": (lambda it: copy.deepcopy(with_itself(it)), 16_384),
    "of its storage": (lambda it: it.untyped_storage().clone(), 16_384),
    "of its storage, and so on": (lambda it: copy.deepcopy(it.untyped_storage()), 16_384),
    "of a parameter that shows a part": (lambda it: copy.deepcopy(nn.Parameter(it[2:4])), 512),
    "of parameters that share it": (lambda it: copy.deepcopy([nn.Parameter(it[:2]), nn.Parameter(it[2:])]), 16_384),
}


@pytest.mark.parametrize("in_a_thread", [False, True])
@pytest.mark.parametrize(("make", "n_bytes"), COPIES.values(), ids=COPIES)
def test_a_copy_has_the_storage_once_and_a_parameter_what_it_shows(
    make: Callable[[torch.Tensor], object], n_bytes: int, in_a_thread: bool
) -> None:
    """As torch's `__deepcopy__` of what has an address; nothing is left of it afterwards."""
    with device() as cuda:
        tensor = torch.zeros(64, 64, device="cuda")
        copies: list[object] = []
        if in_a_thread:
            thread = threading.Thread(target=lambda: copies.append(make(tensor)))
            thread.start()
            thread.join()
        else:
            copies.append(make(tensor))
        gc.collect()
        assert cuda.allocator.requested_bytes - tensor.nbytes == n_bytes
        copies.clear()
        gc.collect()
        assert cuda.allocator.requested_bytes == tensor.nbytes


def test_a_copy_is_what_it_was_made_of() -> None:
    """Its values, its kind, its place in the storage; what is written into it is not written there."""
    with device():
        ids = torch.arange(12, device="cuda").view(3, 4)
        ids.label = "ids"  # type: ignore[attr-defined]
        whole, column, again = copy.deepcopy([ids, ids[:, 1], ids])
        assert whole is again
        assert (whole.label, whole.device) == ("ids", DEVICE)
        assert (column.stride(), column.storage_offset(), column.tolist()) == ((4,), 1, [1, 5, 9])
        column[0] = 7
        with pytest.raises(UnknownValue):
            copy.deepcopy(torch.randn(3, device="cuda")).tolist()
        assert (whole[0].tolist(), ids[0].tolist()) == ([0, 7, 2, 3], [0, 1, 2, 3])
        weight = nn.Parameter(torch.zeros(3, device="cuda"), requires_grad=False)
        weight.grad = torch.ones(3, device="cuda")
        copied, tensor = copy.deepcopy(weight), copy.deepcopy(torch.ones(3, device="cuda", requires_grad=True))
        assert (type(copied) is type(weight), copied.requires_grad, copied.grad) == (True, False, None)
        assert isinstance(copied, nn.Parameter)
        assert (tensor.requires_grad, tensor.tolist()) == (True, [1, 1, 1])
        with pytest.raises(RuntimeError, match="Only Tensors created explicitly"):
            copy.deepcopy(tensor * 2)


SETS: dict[str, Callable[[torch.Tensor, torch.Tensor], object]] = {
    "a storage": lambda empty, large: empty.set_(large.untyped_storage()),
    "a part of one": lambda empty, large: empty.set_(large.untyped_storage(), 8, (32, 32)),
    "a tensor": lambda empty, large: empty.set_(large),
    "a copied view": lambda _, large: copy.deepcopy(large[2:4]),
}


@pytest.mark.parametrize("set_", SETS.values(), ids=SETS)
def test_a_storage_that_was_set_ends_with_its_tensors(set_: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
    """It was kept for good, by what fake tensors remember of each operation."""
    with device() as cuda:
        for _ in range(3):
            empty, large = torch.empty(0, device="cuda"), torch.randn(64, 64, device="cuda")
            set_(empty, large)
            del empty, large
            gc.collect()
            assert cuda.allocator.requested_bytes == 0


def test_what_is_set_holds_what_the_storage_holds() -> None:
    """And what is written through it is written there, known or not."""
    with device():
        numbers, odd = torch.arange(6, device="cuda"), torch.empty(0, dtype=torch.int64, device="cuda")
        odd.set_(numbers.untyped_storage(), 1, (3,), (2,))
        assert odd.tolist() == [1, 3, 5]
        odd.fill_(0)
        assert numbers.tolist() == [0, 0, 2, 0, 4, 0]
        odd.copy_(torch.randn(3, device="cuda"))
        with pytest.raises(UnknownValue):
            numbers[1].item()


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "flattened": lambda it: it.flatten(2),
    "of tokens": lambda it: it.flatten(2).transpose(1, 2).transpose(1, 2).view(1, 6, 4, 4),
    "split": lambda it: it.view(1, 2, 3, 4, 4),
    "itself": lambda it: it.view(it.shape),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_lies_as_a_real_one_where_a_size_is_one(view: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """These strides decide whether the channels come last for torch, and so whether a convolution copies."""
    layout = (1, 6, 4, 4), (5, 1, 24, 6)
    real = view(torch.empty_strided(*layout))
    with device():
        simulated = view(torch.empty_strided(*layout, device="cuda"))
    assert (simulated.shape, simulated.stride()) == (real.shape, real.stride())


def test_a_module_that_is_cast_there_takes_no_more_than_its_parameters_one_after_the_other() -> None:
    """A parameter's old memory is free before the next one is cast."""
    with device():
        module = nn.ParameterList(torch.zeros(64, 64) for _ in range(3)).to("cuda")
        torch.cuda.reset_peak_memory_stats()
        module.half()
        assert torch.cuda.max_memory_allocated() == 3 * 16_384 + 8_192
