"""Tensors of a simulated card outside the simulation: nothing is counted there, so nothing runs."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from tests.vram.simulated.devices import device
from vram.simulated.context import DEVICE

OUTSIDE = """
import torch
from torch import nn
from vram.simulated.context import SimulatedCuda
with SimulatedCuda("24GiB"):
    model = nn.Linear(4, 4).to("cuda")
for use in (lambda: model(torch.zeros(1, 4)), lambda: model.weight * 2, lambda: model.weight.sum()):
    try:
        use()
    except RuntimeError as error:
        print(error)
"""


def test_gradients_of_what_is_on_the_card_do_not_end_the_process(forked: None) -> None:
    """In a process of its own, as it once ended there."""
    command = [sys.executable, "-c", OUTSIDE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is of a tensor on a simulated card, outside the simulation") == 3


USES: dict[str, Callable[[nn.Module, torch.Tensor], object]] = {
    "a module": lambda model, x: model(x),
    "arithmetic": lambda _, x: x * 2,
    "a view": lambda _, x: x[0],
    "to the CPU": lambda _, x: x.cpu(),
    "a value": lambda _, x: x.sum().item(),
    "a module is moved": lambda model, _: model.cpu(),
    "a copy": lambda model, _: copy.deepcopy(model),
    "of its kind": lambda _, x: torch.zeros_like(x),
}


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_operations_outside_are_refused_by_name_and_line(use: Callable[[nn.Module, torch.Tensor], object]) -> None:
    """Never run and not counted; looks and sizes can be read, and inside all goes on."""
    cuda = device()
    with cuda:
        model, x = nn.Linear(4, 4).to("cuda"), torch.zeros(2, 4, device="cuda")
    gc.collect()
    before = cuda.allocator.requested_bytes
    with (
        torch.no_grad(),
        pytest.raises(
            RuntimeError, match=r"aten\.\w+.* at .*test_outside\.py:\d+ .*inside `with vram\.on_device\(\):`"
        ),
    ):
        use(model, x)
    assert "cuda:0" in repr(x)
    assert sum(parameter.nbytes for parameter in model.parameters()) + x.nbytes == before
    with cuda:
        assert model(x).shape == (2, 4)
        gc.collect()
        assert cuda.allocator.requested_bytes == before


def test_a_thread_that_outlives_a_simulation_is_not_of_it_any_more() -> None:
    """A pool's, used for real work afterwards, and inside again: refused between, as in the main thread."""
    first, second = device(), device()
    with ThreadPoolExecutor(1) as pool:
        with first:
            x = pool.submit(torch.zeros, 4, device="cuda").result()
        assert pool.submit(lambda: (torch.ones(3) * 2).tolist()).result() == [2.0] * 3
        with pytest.raises(RuntimeError, match=r"aten\.mul.* outside the simulation"):
            pool.submit(lambda: x * 2).result()
        with second:
            other = pool.submit(torch.zeros, 250, device="cuda").result()
            assert other.device == DEVICE
            assert (first.allocator.requested_bytes, second.allocator.requested_bytes) == (16, 1000)
        with first:
            kept = pool.submit(lambda: x * 2).result()
            assert first.allocator.requested_bytes == x.nbytes + kept.nbytes
