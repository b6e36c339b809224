"""Replacements for `torch.cuda` and `torch.accelerator` inside a simulation: figures of its card and allocator."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from vram.cards import Card
from vram.simulated.allocator import CachingAllocator
from vram.simulated.allocator_figures import Count, Stat
from vram.simulated.allocator_settings import Settings
from vram.simulated.device import card_index
from vram.simulated.replacements import Places, always, of_the_card, refuse, refused_class
from vram.simulated.streams import NO_GRAPHS, without_graphs
from vram.simulated.torch_build import release

_NO_HOST = "simulated CUDA does not model pinned memory: measure on a GPU"
_NO_ALLOCATOR = "simulated CUDA models PyTorch's own caching allocator, and no other: measure on a GPU"
_NO_DRIVER = "a simulated card has no driver, and another card's figures are none of its: measure on a GPU"
_OF_A_DRIVER = (
    *("clock_rate", "device_memory_used", "list_gpu_processes", "memory_usage", "power_draw", "temperature"),
    "utilization",
)
_POOLED = (
    *(
        (owner, name)
        for owner in (torch.cuda, torch.cuda.graphs, torch.cuda.memory)
        for name in ("CUDAGraph", "MemPool")
    ),
    (torch.accelerator, "Graph"),
)
_NO_KERNELS = (
    "simulated CUDA does not model kernels of torch.cuda.jiterator, which are compiled on a card: use operations of "
    "torch, or measure on a GPU"
)
_NO_RAW = "simulated CUDA has no addresses to hand out: allocate tensors"
_NO_HISTORY = "simulated CUDA records no history of allocations: vram explains growth and peaks by line"
_NEWER = {"host_memory_stats"}  # which not every torch has
_SET, _GET = "_accelerator_setAllocatorSettings", "_accelerator_getAllocatorSettings"
_STATS = {"allocations": "allocation", "segments": "segment"}  # by our names, torch's
_WITHOUT_EFFECT = (  # nothing is drawn, and nothing waits
    *("_lazy_init", "get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all", "seed", "seed_all"),
    *("ipc_collect", "set_sync_debug_mode"),
)
# Threads of a multiprocessor, where not 2,048 (CUDA programming guide, technical specifications by compute capability).
_THREADS = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (12, 0): 1536, (12, 1): 1536}
_Functions = dict[str, Callable[..., Any]]


def cuda_places(card: Card, allocator: CachingAllocator) -> Places:
    """Replacements for functions of `torch.cuda`, where it has them, `torch.accelerator`, and their memory modules."""
    functions = _device_functions(card) | _memory_functions(card, allocator)
    places: Places = {
        (torch.cuda, name): function
        for name, function in functions.items()
        if name not in _NEWER or hasattr(torch.cuda, name)
    }
    places |= {(torch.cuda.nvtx, name): always(None) for name in ("mark", "range_pop", "range_push")}
    accelerator, accelerator_memory = _accelerator_functions(functions), torch.accelerator.memory
    places |= {(torch.accelerator, name): function for name, function in accelerator.items()}
    places |= {
        (accelerator_memory, name): function
        for name, function in accelerator.items()
        if hasattr(accelerator_memory, name)
    }
    # The module that defines them: functions imported before call these.
    memory = torch.cuda.memory
    places |= {(memory, name): function for name, function in functions.items() if hasattr(memory, name)}
    places[memory, "_snapshot"] = lambda *_, **__: allocator.snapshot()
    places[memory, "_record_memory_history"] = lambda *_, **__: warnings.warn(_NO_HISTORY, stacklevel=2)
    for name, function in _settings_functions(allocator).items():
        places |= {(owner, name): function for owner in (torch.cuda, memory, torch._C) if hasattr(owner, name)}
    for owner, name in _POOLED:
        if hasattr(owner, name):
            places[owner, name] = refused_class(getattr(owner, name), NO_GRAPHS)
    places[torch.cuda.jiterator._JittedFunction, "__call__"] = refuse(_NO_KERNELS)
    return places | without_graphs()


def _settings() -> str:
    """The settings of the last call, or those of the environment when torch first read it."""
    return str(getattr(torch._C, _GET)()) if hasattr(torch._C, _GET) else ""


_OF_ENVIRONMENT = _settings()  # read now, so that later texts are a call's


def settings_by_call(settings: Settings) -> Settings:
    """Settings after a call before the simulation. Raises ValueError where these are not modelled."""
    text = _settings()
    try:
        by_call = settings if text == _OF_ENVIRONMENT else settings.set_to(text)
    except ValueError as error:
        raise ValueError(f"torch.cuda.memory._set_allocator_settings: {error}") from None
    return _for_this_torch(by_call)


def _for_this_torch(settings: Settings) -> Settings:
    """The settings. Raises ValueError where this torch has other rules for them than those that are modelled."""
    if settings != Settings() and release() < (2, 13):
        raise ValueError(
            f"simulated CUDA models settings of the allocator as torch 2.13 has them, got {settings} with torch "
            f"{torch.__version__}: take them out, or measure on a GPU"
        )
    return settings


def memory_stats(allocator: CachingAllocator) -> dict[str, int]:
    """Figures under the names of `torch.cuda.memory_stats`."""
    stats = allocator.stats
    figures: dict[str, int] = {}
    for name, figure in vars(stats).items():
        if isinstance(figure, Stat):
            large, small = (getattr(pool, name) for pool in allocator.pools)
            name = _STATS.get(name, name)
            figures |= _named(f"{name}.large_pool", large) | _named(f"{name}.small_pool", small)
            figures |= {f"{name}.all.current": figure.current, f"{name}.all.peak": figure.peak}
            figures |= {f"{name}.all.allocated": large.allocated + small.allocated}
            figures |= {f"{name}.all.freed": large.freed + small.freed}
    for name in ("oversize_allocations", "oversize_segments"):
        figures |= _named(name, getattr(allocator, name))
    figures |= {
        "num_alloc_retries": stats.alloc_retries,
        "num_ooms": stats.ooms,
        "num_sync_all_streams": stats.sync_all_streams,
        "num_device_alloc": figures["segment.all.allocated"],
        "num_device_free": figures["segment.all.freed"],
        "max_split_size": allocator.max_split_size,
    }
    return _Figures(figures)


def _nested(figures: dict[str, int]) -> dict[str, Any]:
    """Figures by the parts of their names."""
    nested: dict[str, Any] = {}
    for name, figure in figures.items():
        *parts, last = name.split(".")
        place = nested
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = figure
    return nested


def _named(name: str, count: Count) -> dict[str, int]:
    return {f"{name}.{kind}": getattr(count, kind) for kind in ("current", "peak", "allocated", "freed")}


class _Properties(SimpleNamespace):
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"simulated CUDA does not know a card's {name}: measure on a GPU")


class _Figures(dict[str, int]):
    def __missing__(self, name: str) -> int:
        raise KeyError(f"{name}: simulated CUDA has no such figure")

    def get(self, name: str, default: Any = None) -> Any:
        """No default: that would be a figure."""
        return self[name]


def _device_functions(card: Card) -> _Functions:
    """Functions of `torch.cuda` about the device, its random numbers and its streams."""
    major, minor = card.compute_capability
    properties = _Properties(
        **{"name": card.name, "total_memory": card.total_bytes, "major": major, "minor": minor, "uuid": "simulated"},
        multi_processor_count=card.multiprocessors,
        max_threads_per_multi_processor=_THREADS.get(card.compute_capability, 2048),
        **{"warp_size": 32, "max_threads_per_block": 1024, "regs_per_multiprocessor": 65_536},
        **{"shared_memory_per_block": 49_152, "is_integrated": 0, "is_multi_gpu_board": 0},
    )
    return {name: always(None) for name in _WITHOUT_EFFECT} | {
        "is_available": always(True),
        "device_count": always(1),
        "current_device": always(0),
        "is_initialized": always(True),
        "set_device": lambda device: card_index(device),
        "_exchange_device": lambda device: card_index(device),
        "_maybe_exchange_device": lambda device: card_index(device),
        "synchronize": of_the_card(lambda: None),
        "initial_seed": always(0),
        "get_device_properties": of_the_card(lambda: properties),
        "get_device_name": of_the_card(lambda: card.name),
        "get_device_capability": of_the_card(lambda: card.compute_capability),
        "is_bf16_supported": always(card.compute_capability >= (8, 0)),
        "can_device_access_peer": always(False),
        "get_sync_debug_mode": always(0),
    }


def _memory_functions(card: Card, allocator: CachingAllocator) -> _Functions:
    """Functions of `torch.cuda` about memory."""
    return {
        "mem_get_info": of_the_card(lambda: (allocator.free_bytes, card.total_bytes)),
        "memory_allocated": of_the_card(lambda: allocator.stats.allocated_bytes.current),
        "max_memory_allocated": of_the_card(lambda: allocator.stats.allocated_bytes.peak),
        "memory_reserved": of_the_card(lambda: allocator.stats.reserved_bytes.current),
        "max_memory_reserved": of_the_card(lambda: allocator.stats.reserved_bytes.peak),
        "memory_stats": of_the_card(lambda: memory_stats(allocator)),
        "reset_peak_memory_stats": of_the_card(allocator.reset_peak),
        "reset_max_memory_allocated": of_the_card(allocator.reset_peak),
        "memory_snapshot": lambda *_, **__: allocator.snapshot()["segments"],
        "memory_stats_as_nested_dict": of_the_card(lambda: _nested(memory_stats(allocator))),
        "reset_accumulated_memory_stats": of_the_card(allocator.reset_accumulated),
        "set_per_process_memory_fraction": _set_fraction(card, allocator),
        "get_per_process_memory_fraction": of_the_card(
            lambda: 1.0 if allocator.allowed_bytes is None else allocator.allowed_bytes / card.total_bytes
        ),
        "get_allocator_backend": always("native"),
        **dict.fromkeys(_OF_A_DRIVER, refuse(_NO_DRIVER)),
        "host_memory_stats": refuse(_NO_HOST),
        "caching_allocator_alloc": refuse(_NO_RAW),
        "empty_cache": allocator.empty_cache,
    }


def _settings_functions(allocator: CachingAllocator) -> _Functions:
    """Functions that change the allocator's settings, or use another one, wherever torch has them."""
    others = ("caching_allocator_enable", "caching_allocator_disabled", "change_current_allocator", "use_mem_pool")
    functions = dict.fromkeys((*others, "CUDAPluggableAllocator", "_use_uvm"), refuse(_NO_ALLOCATOR))

    def set_to(text: str) -> None:
        settings = _for_this_torch(allocator.settings.set_to(text, by_call=True))
        if allocator.segments and settings.max_split_bytes < allocator.settings.max_split_bytes:
            raise ValueError(
                "max_split_size_mb must be set before anything is allocated, as PyTorch would give parts of earlier "
                f"segments back to the card, got {text}: set it in the environment"
            )
        allocator.settings = settings

    settings = ("_set_allocator_settings", _SET, "_cuda_cudaCachingAllocator_set_allocator_settings")
    return functions | dict.fromkeys(settings, set_to) | {"caching_allocator_delete": refuse(_NO_RAW)}


def _set_fraction(card: Card, allocator: CachingAllocator) -> Callable[..., None]:
    def set_fraction(fraction: float, device: Any = None) -> None:
        card_index("cuda" if device is None else device)
        if not isinstance(fraction, float):
            raise TypeError("Invalid type for fraction argument, must be `float`")
        if not 0 <= fraction <= 1:
            raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
        allocator.allowed_bytes = int(fraction * card.total_bytes)

    return set_fraction


def _accelerator_functions(cuda: _Functions) -> _Functions:
    """Functions of `torch.accelerator`: those of `torch.cuda`, some under other names."""
    names = {
        "current_device_index": "current_device",
        "set_device_index": "set_device",
        "get_memory_info": "mem_get_info",
    }
    names |= {name: name for name in cuda if name != "get_device_capability"}  # there, that is about dtypes
    functions = {name: cuda[other] for name, other in names.items() if hasattr(torch.accelerator, name)}
    functions["current_accelerator"] = lambda check_available=False: torch.device("cuda")
    return functions
