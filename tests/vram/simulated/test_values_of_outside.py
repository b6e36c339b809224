"""Real tensors inside a simulation: their memory is their own, read and written as without one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.vram.simulated.devices import device
from vram.simulated.known_values import UnknownValue

HANDED_OUT: dict[str, Callable[[torch.Tensor], Any]] = {
    "numpy": lambda it: it.numpy().tolist(),
    "numpy by force": lambda it: it.numpy(force=True).tolist(),
    "numpy of what is there": lambda it: it.cpu().numpy().tolist(),
    "numpy, detached": lambda it: it.detach().cpu().numpy().tolist(),
    "numpy of rows": lambda it: [row.numpy().tolist() for row in it],
    "array": lambda it: np.asarray(it).tolist(),
    "array of another dtype": lambda it: np.asarray(it, dtype=np.float64).tolist(),
    "copy": lambda it: copy.deepcopy(it).numpy().tolist(),
    "copy of a part": lambda it: copy.deepcopy(it[:]).numpy().tolist(),
    "shared memory": lambda it: it.share_memory_().tolist(),
    "pickle": lambda it: pickle.loads(pickle.dumps(it)).numpy().tolist(),  # noqa: S301 (ours)
    "list": lambda it: it.tolist(),
    "dlpack": lambda it: np.from_dlpack(it).tolist(),
}


@pytest.mark.parametrize("hand_out", HANDED_OUT.values(), ids=HANDED_OUT)
def test_a_real_tensor_hands_out_its_own_memory(hand_out: Callable[[torch.Tensor], Any]) -> None:
    """Whatever it is of, and never foreign memory; and afterwards every operation of that shape still runs."""
    real = torch.linspace(0, 1, 320).view(16, 20)
    with device():
        assert hand_out(real) == real.tolist()
    with device():
        assert real.cuda().detach().shape == (real + 0).detach().shape == real.detach().shape == (16, 20)


def test_what_is_real_is_copied_as_such_beside_what_is_not() -> None:
    """One `copy.deepcopy` of both, and of a module too."""
    real, linear = torch.linspace(0, 1, 100), nn.Linear(8, 8)
    with device():
        there, copied, module = copy.deepcopy([real.cuda(), real, linear])
        assert (there.device.type, copied.tolist()) == ("cuda", real.tolist())
        assert module.weight.tolist() == linear.weight.tolist()
        assert module.weight is not linear.weight
        assert isinstance(copy.deepcopy(nn.Linear(2, 2)).cuda().weight, nn.Parameter)


def test_functions_of_each_element_run_on_what_is_there() -> None:
    """On real tensors, on known ones, and not on unknown ones, whose memory there is none of."""
    real = torch.zeros(100)
    with device():
        assert real.apply_(lambda _: 2.0).tolist() == [2.0] * 100
        known = torch.arange(3)
        known.apply_(lambda value: value + 1).map_(real[:3].long(), lambda first, second: first * second)  # type: ignore[attr-defined]
        assert known.tolist() == [2, 4, 6]
        with pytest.raises(UnknownValue, match=r"Tensor.apply_ at .*test_values_of_outside\.py:\d+ "):
            torch.randn(3).apply_(lambda value: value)
    assert real.sum() == 200


def test_what_is_known_is_handed_over_by_dlpack_and_what_is_not_is_not() -> None:
    """Its address is of nothing."""
    with device():
        assert np.from_dlpack(torch.arange(3)).tolist() == [0, 1, 2]
        with pytest.raises(UnknownValue, match=r"Tensor.__dlpack__ at .*test_values_of_outside\.py:\d+ "):
            np.from_dlpack(torch.randn(100))


def test_what_is_written_into_a_real_tensor_is_read_from_it_however_that_is_asked() -> None:
    """Inside and afterwards: by item, list and array, through its views and those of NumPy."""
    array = np.zeros(3, np.int64)
    counter, large, shared = torch.zeros(1, dtype=torch.int64), torch.zeros(100), torch.from_numpy(array)
    with device():
        for _ in range(2):
            counter += 1
        assert (counter.item(), counter.tolist(), counter.numpy().tolist(), f"{counter[0]}") == (2, [2], [2], "2")
        large[1:3] = 5
        large.view(10, 10)[0, 3:4].copy_(torch.tensor([7.0], device="cuda"))
        inside = torch.from_numpy(array)
        array[0] = 4
        assert (shared.tolist(), inside.tolist(), inside.cuda().tolist()) == ([4, 0, 0],) * 3
        inside[1] = 6
    assert counter.item() == 2
    assert large[:4].tolist() == [0, 5, 5, 7]
    assert array.tolist() == shared.tolist() == [4, 6, 0]


@pytest.mark.parametrize("elements", [4, 100])
def test_a_real_tensor_that_something_unknown_was_written_into_is_not_read(elements: int) -> None:
    """Its memory holds what was there before."""
    real = torch.zeros(elements)
    reads: list[Callable[[], Any]] = [
        lambda: real.tolist(),
        lambda: real.numpy(),
        lambda: real[1:].numpy(),
        lambda: repr(real),
        lambda: copy.deepcopy(real),
        lambda: real[0].item(),
    ]
    with device():
        real[:2].copy_(torch.randn(2, device="cuda"))
        for read in reads:
            with pytest.raises(UnknownValue, match=r" at .*test_values_of_outside\.py:\d+ "):
                read()


def test_a_real_tensor_that_is_resized_inside_is_what_it_is_now() -> None:
    """And not what it was when the simulation first met it."""
    real, result = torch.arange(6), torch.empty(0, dtype=torch.int64)
    with device():
        assert result.cuda().shape == (0,)
        torch.add(real, real, out=result)
        assert result.cuda().tolist() == result.tolist() == [0, 2, 4, 6, 8, 10]
