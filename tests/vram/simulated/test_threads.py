"""Threads that start inside a simulation: their tensors are the card's, too."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch._subclasses import fake_tensor

from tests.vram.simulated.devices import device


def test_other_threads_are_followed() -> None:
    """Tensors that they make and use on the card are the card's; those that they read into main memory, as transformers
    does, stay real. A storage that is resized by hand is followed too."""
    with device() as cuda:
        first, made = torch.zeros(16, 16, device="cuda"), []
        before = cuda.allocator.requested_bytes
        thread = threading.Thread(
            target=lambda: made.extend(
                [first + 1, torch.zeros(100, device="cuda"), torch.ones(3), torch.ones(3).cuda()]
            )
        )
        thread.start()
        thread.join()
        assert cuda.allocator.requested_bytes - before == first.nbytes + 400 + 12
        assert [type(tensor) is fake_tensor.FakeTensor for tensor in made] == [True, True, False, True]
        first.untyped_storage().resize_(0)
        assert cuda.allocator.requested_bytes - before == 400 + 12


def test_threads_at_once_take_turns() -> None:
    """Each matrix is there once, however they interleave."""

    def powers(_: int) -> torch.Tensor:
        matrix = torch.zeros(16, 16, device="cuda")
        for _ in range(30):
            matrix = matrix @ matrix + 1
        return matrix

    with device() as cuda:
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(powers, range(8)))
        assert cuda.allocator.requested_bytes == sum(matrix.nbytes for matrix in made) == 8 * 16 * 16 * 4


FROM_A_THREAD: dict[str, Callable[[], object]] = {
    "to a name": lambda: torch.zeros(3).to("cuda:0"),
    "to a keyword": lambda: torch.zeros(3).to(device="cuda"),
    "to a number": lambda: torch.zeros(3).to(0),
    "to where another is": lambda: torch.zeros(3).to(torch.zeros(1, device="cuda")),
    "cuda()": lambda: torch.zeros(3).cuda(),
    "a factory": lambda: torch.zeros(3, device="cuda"),
    "a factory like another": lambda: torch.empty_like(torch.zeros(2), device="cuda"),
    "of a list": lambda: torch.tensor([1.0, 2.0], device="cuda:0"),
    "a module": lambda: nn.Linear(3, 3).to("cuda"),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU answers")
@pytest.mark.parametrize("way", FROM_A_THREAD)
def test_a_thread_takes_from_the_card_and_torch_does_not_think_it_initialised(way: str) -> None:
    """Afterwards, torch without a GPU refuses one in the same words as before."""

    def refusal() -> str:
        with pytest.raises((AssertionError, RuntimeError)) as caught:
            torch.zeros(3).to("cuda:0")
        return str(caught.value)

    before, made = refusal(), []
    with device() as cuda:
        thread = threading.Thread(target=lambda: made.append(FROM_A_THREAD[way]()))
        thread.start()
        thread.join()
        assert len(made) == 1
        assert cuda.allocator.allocated_bytes > 0
    assert refusal() == before
