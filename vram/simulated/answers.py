"""What `torch.cuda` says inside a simulation: the card's and the allocator's figures, and nothing of a real GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from vram.simulated.allocator import CachingAllocator, Stat
from vram.simulated.cards import Card

_NO_BACKWARD = "simulated CUDA is for inference: what a backward pass allocates is not modelled"


@contextmanager
def answering(card: Card, allocator: CachingAllocator, mode: FakeTensorMode) -> Iterator[None]:
    """Inside, questions about the GPU are answered from `card` and `allocator`; backward passes are refused.

    Parameters of `mode` can be moved and cast.
    """
    places = _answers(card, allocator) | {(torch.utils, "swap_tensors"): _swapping(mode)}
    for owner, name in places:
        if not hasattr(owner, name):
            raise RuntimeError(
                f"simulated CUDA answers for {owner.__name__}.{name}, which torch {torch.__version__} lacks"
            )
    before = {place: getattr(*place) for place in places}
    try:
        for (owner, name), answer in places.items():
            setattr(owner, name, answer)
        yield
    finally:
        for (owner, name), answer in before.items():
            setattr(owner, name, answer)


def _swapping(mode: FakeTensorMode) -> Callable[..., None]:
    """`torch.utils.swap_tensors`, by which `Module.to` moves fake parameters, and which refuses what is weakly held."""
    swap = torch.utils.swap_tensors
    memo = mode.fake_tensor_converter.meta_converter.tensor_memo  # what the mode knows its tensors by

    def swapping(first: torch.Tensor, second: torch.Tensor) -> None:
        memo.clear()
        swap(first, second)  # type: ignore[no-untyped-call]

    return swapping


def memory_stats(allocator: CachingAllocator) -> dict[str, int]:
    """Figures under the names of `torch.cuda.memory_stats`, as far as they are modelled."""
    stats = allocator.stats
    figures: dict[str, int] = {"num_alloc_retries": stats.alloc_retries, "num_ooms": stats.ooms}
    for name, figure in vars(stats).items():
        if isinstance(figure, Stat):
            figures[f"{name}.all.current"], figures[f"{name}.all.peak"] = figure.current, figure.peak
    return figures


def _answers(card: Card, allocator: CachingAllocator) -> dict[tuple[Any, str], Callable[..., Any]]:
    major, minor = card.compute_capability
    properties = SimpleNamespace(
        name=card.name, total_memory=card.total_bytes, major=major, minor=minor, uuid="simulated"
    )

    def refuse(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(_NO_BACKWARD)

    def always(value: Any) -> Callable[..., Any]:
        return lambda *_, **__: value

    cuda: dict[str, Callable[..., Any]] = {
        "_lazy_init": always(None),
        "is_available": always(True),
        "device_count": always(1),
        "current_device": always(0),
        "set_device": always(None),
        "synchronize": always(None),
        "get_rng_state": always(None),  # nothing is drawn
        "set_rng_state": always(None),
        "get_device_properties": always(properties),
        "get_device_name": always(card.name),
        "get_device_capability": always(card.compute_capability),
        "is_bf16_supported": always(card.compute_capability >= (8, 0)),
        "mem_get_info": lambda *_: (allocator.free_bytes, card.total_bytes),
        "memory_allocated": lambda *_: allocator.stats.allocated_bytes.current,
        "max_memory_allocated": lambda *_: allocator.stats.allocated_bytes.peak,
        "memory_reserved": lambda *_: allocator.stats.reserved_bytes.current,
        "max_memory_reserved": lambda *_: allocator.stats.reserved_bytes.peak,
        "memory_stats": lambda *_: memory_stats(allocator),
        "reset_peak_memory_stats": lambda *_: allocator.reset_peak(),
        "empty_cache": allocator.empty_cache,
    }
    places: dict[tuple[Any, str], Callable[..., Any]] = {(torch.cuda, name): answer for name, answer in cuda.items()}
    places |= {(torch.autograd, "backward"): refuse, (torch.autograd, "grad"): refuse}
    places[fake_tensor, "init_gpu_context"] = always(None)  # there is no GPU to wake, or it is none of ours
    # transformers builds masks for fake tensors that no real run has: it must take these for real.
    their_checks = sys.modules.get("transformers.utils.import_utils")
    if their_checks is not None:
        places[their_checks, "is_fake_tensor"] = always(False)
    return places
