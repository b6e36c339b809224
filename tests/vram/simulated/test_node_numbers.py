"""The order of nodes of gradients of gradients is a card's, where backward passes have a thread of their own."""

from __future__ import annotations

import gc

import torch
from torch import nn

from vram.cards import find_card
from vram.simulated.context import SimulatedCuda
from vram.simulated.node_numbers import NodeNumbers


def test_nodes_of_a_pass_are_counted_by_themselves() -> None:
    """Two that a pass makes between others begin at 0, and the one after them follows the one before; once for good."""
    numbers, x = NodeNumbers(), torch.ones(2, requires_grad=True)
    with numbers.making(on_card=False):
        x * 2  # of nobody's
    before = x * 2
    with numbers.making(on_card=True):
        first = before * 3
        second = first * 3
    after = second * 2
    begun = torch._C._autograd._get_sequence_nr() - 5
    for _ in range(2):
        numbers.renumber([after])
        found = [each.grad_fn._sequence_nr() for each in (before, first, second, after)]  # type: ignore[union-attr]
        assert found == [begun, 0, 1, begun + 1]


def test_a_gradient_penalty_needs_what_it_does_on_a_card() -> None:
    """Two steps of a critic: peaks and what stays, above what was there, as PyTorch's own CUDA code has them (2.13 on
    the properties of an H100, without a card, by `python -m benchmarks.cardless`)."""
    with SimulatedCuda(find_card("H100")):
        warm = nn.Linear(8, 8, device="cuda")  # workspaces of both threads
        warm(torch.zeros(8, 8, device="cuda", requires_grad=True)).sum().backward()
        del warm
        gc.collect()
        before = torch.cuda.memory_allocated()
        critic = nn.Sequential(nn.Linear(32, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1)).to("cuda")
        optimizer, figures = torch.optim.RMSprop(critic.parameters()), []
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            _step(critic, optimizer)
            gc.collect()
            figures += [torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before]
    assert figures == [53_760, 29_184, 63_488, 29_184]


def _step(critic: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    real, made = (torch.randn(8, 32, device="cuda") for _ in range(2))
    share = torch.rand(8, 1, device="cuda")
    mixed = (share * real + (1 - share) * made).requires_grad_()
    gradient = torch.autograd.grad(critic(mixed), mixed, torch.ones(8, 1, device="cuda"), create_graph=True)[0]
    loss = critic(made).mean() - critic(real).mean() + 10 * ((gradient.norm(2, dim=1) - 1) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
