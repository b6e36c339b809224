"""What `torch.cuda` says inside a simulation: the card's and the allocator's figures, and nothing of a real GPU."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.multiprocessing import reductions
from torch.nn.modules import lazy
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.data._utils import worker

from vram.cards import Card
from vram.simulated.allocator import CachingAllocator, Stat
from vram.simulated.known_values import Shadows, is_real
from vram.simulated.serialization import Storages, file_answers

_NO_BACKWARD = "simulated CUDA is for inference: what a backward pass allocates is not modelled, so measure on a GPU"
_NO_FORWARD = "simulated CUDA does not model what forward-mode derivatives allocate: measure on a GPU"
_ONE_STREAM = "simulated CUDA has one stream: several, events and graphs are not modelled, so measure on a GPU"
_NO_HOST = "simulated CUDA does not model pinned memory: measure on a GPU"
_NO_NESTED = "simulated CUDA does not model nested tensors: measure on a GPU, or pad"
_NO_LAZY = "a simulated parameter has its size from the start: give the module its sizes, or measure on a GPU"
_NO_SUBCLASS = "simulated CUDA does not model subclasses of Tensor: measure on a GPU"
_NO_SUMMARY = "simulated CUDA has no figures by pool: see torch.cuda.memory_stats()"
_NO_RAW = "simulated CUDA has no addresses to hand out: allocate tensors"
_NO_HISTORY = "simulated CUDA records no history of allocations: vram explains growth and peaks by line"
_EAGER = "simulated CUDA runs what torch.compile was given eagerly, and compiled code allocates otherwise"
_NO_EXPORT = "simulated CUDA would count what torch.export makes while it traces: run the module itself"
_NO_TRACE = "simulated CUDA has no values for what torch.jit.trace checks: trace outside, or run the module itself"
_FAST_PATH = (
    "on a card nn.MultiheadAttention and nn.TransformerEncoder take a fused path, whose memory simulated CUDA does not "
    "model: figures are those after torch.backends.mha.set_fastpath_enabled(False)"
)


@contextmanager
def answering(
    card: Card, allocator: CachingAllocator, mode: FakeTensorMode, shadows: Shadows, storages: Storages
) -> Iterator[None]:
    """Inside, questions about the GPU are answered from `card` and `allocator`; backward passes are refused.

    Parameters of `mode`, whose values are in `shadows`, can be moved and cast. `storages` makes those of the card.
    """
    places = _answers(card, allocator) | {(torch.utils, "swap_tensors"): _swapping(mode, shadows)}
    places |= file_answers(storages, _only_one)
    for owner, name in places:
        if not hasattr(owner, name):
            raise RuntimeError(
                f"simulated CUDA answers for {owner.__name__}.{name}, which torch {torch.__version__} lacks"
            )
    before = {place: getattr(*place) for place in places}
    own = {(owner, name): vars(owner)[name] for owner, name in places if name in vars(owner)}  # and not its base's
    imported = set(sys.modules)
    try:
        for (owner, name), answer in places.items():
            setattr(owner, name, answer)
        yield
    finally:
        for owner, name in places:
            if (owner, name) in own:
                setattr(owner, name, own[owner, name])
            else:
                delattr(owner, name)
        _take_back({id(answer): before[place] for place, answer in reversed(places.items())}, imported)


def _take_back(own: Mapping[int, Any], imported: Collection[str]) -> None:
    """From modules that were imported inside, what they took of our answers: `own`, by id, was there before."""
    for module in [module for name, module in list(sys.modules.items()) if name not in imported]:
        namespace = getattr(module, "__dict__", {})
        for name in [name for name, value in list(namespace.items()) if id(value) in own]:
            namespace[name] = own[id(namespace[name])]


def _swapping(mode: FakeTensorMode, shadows: Shadows) -> Callable[..., None]:
    """`torch.utils.swap_tensors`, by which `Module.to` moves fake parameters. What it refuses is moved as real ones."""
    swap = torch.utils.swap_tensors
    memo = mode.fake_tensor_converter.meta_converter.tensor_memo  # what the mode knows its tensors by

    def swapping(first: torch.Tensor, second: torch.Tensor) -> None:
        memo.clear()
        with shadows.swapping(first, second):
            try:
                swap(first, second)  # type: ignore[no-untyped-call]
            except RuntimeError:  # views of it are alive, or somebody holds it weakly
                first.data = second
                first.fake_device = second.fake_device  # type: ignore[attr-defined]
                return
        # `Module.to` holds the second until it has moved the next: not what the first was, of which the card is rid.
        second.data = first.data
        second.fake_device = first.fake_device  # type: ignore[attr-defined]

    return swapping


_NEWER = {"host_memory_stats"}
_STATS = {"allocations": "allocation", "segments": "segment"}  # by our names, torch's


class _Properties(SimpleNamespace):
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"simulated CUDA does not know a card's {name}: measure on a GPU")


class _Figures(dict[str, int]):
    def __missing__(self, name: str) -> int:
        raise KeyError(f"{name}: simulated CUDA has the figures of all pools together, current and peak")

    def get(self, name: str, default: Any = None) -> Any:
        """No default: that would be a figure."""
        return self[name]


def memory_stats(allocator: CachingAllocator) -> dict[str, int]:
    """Figures under the names of `torch.cuda.memory_stats`, as far as they are modelled."""
    stats = allocator.stats
    figures = _Figures({"num_alloc_retries": stats.alloc_retries, "num_ooms": stats.ooms})
    for name, figure in vars(stats).items():
        name = _STATS.get(name, name)
        if isinstance(figure, Stat):
            figures[f"{name}.all.current"], figures[f"{name}.all.peak"] = figure.current, figure.peak
    return figures


def _answers(card: Card, allocator: CachingAllocator) -> dict[tuple[Any, str], Callable[..., Any]]:
    major, minor = card.compute_capability
    properties = _Properties(name=card.name, total_memory=card.total_bytes, major=major, minor=minor, uuid="simulated")

    def refuse(why: str) -> Callable[..., Any]:
        def refusing(*_: Any, **__: Any) -> Any:
            raise NotImplementedError(why)

        return refusing

    def set_fraction(fraction: float, device: Any = None) -> None:
        _only_one("cuda" if device is None else device)
        if type(fraction) not in (float, int):
            raise TypeError("Invalid type for fraction argument, must be `float`")
        if not 0 <= fraction <= 1:
            raise ValueError(f"Invalid fraction value: {fraction}. Allowed range: 0~1")
        allocator.allowed_bytes = int(fraction * card.total_bytes)

    def always(value: Any) -> Callable[..., Any]:
        return lambda *_, **__: value

    def of_the_one(answer: Callable[[], Any]) -> Callable[..., Any]:
        def answering(device: Any = None) -> Any:
            _only_one("cuda" if device is None else device)
            return answer()

        return answering

    cuda: dict[str, Callable[..., Any]] = {
        "_lazy_init": always(None),
        "is_available": always(True),
        "device_count": always(1),
        "current_device": always(0),
        "is_initialized": always(True),
        "set_device": _only_one,
        "_exchange_device": _only_one,
        "_maybe_exchange_device": _only_one,
        "synchronize": of_the_one(lambda: None),
        "get_rng_state": always(None),  # nothing is drawn
        "set_rng_state": always(None),
        "manual_seed": always(None),
        "manual_seed_all": always(None),
        "seed": always(None),
        "seed_all": always(None),
        "initial_seed": always(0),
        "get_device_properties": of_the_one(lambda: properties),
        "get_device_name": of_the_one(lambda: card.name),
        "get_device_capability": of_the_one(lambda: card.compute_capability),
        "is_bf16_supported": always(card.compute_capability >= (8, 0)),
        "mem_get_info": of_the_one(lambda: (allocator.free_bytes, card.total_bytes)),
        "memory_allocated": of_the_one(lambda: allocator.stats.allocated_bytes.current),
        "max_memory_allocated": of_the_one(lambda: allocator.stats.allocated_bytes.peak),
        "memory_reserved": of_the_one(lambda: allocator.stats.reserved_bytes.current),
        "max_memory_reserved": of_the_one(lambda: allocator.stats.reserved_bytes.peak),
        "memory_stats": of_the_one(lambda: memory_stats(allocator)),
        "reset_peak_memory_stats": of_the_one(allocator.reset_peak),
        "reset_max_memory_allocated": of_the_one(allocator.reset_peak),
        "memory_snapshot": lambda *_, **__: allocator.snapshot()["segments"],
        "memory_summary": refuse(_NO_SUMMARY),
        "memory_stats_as_nested_dict": refuse(_NO_SUMMARY),
        "reset_accumulated_memory_stats": of_the_one(allocator.reset_accumulated),
        "set_per_process_memory_fraction": set_fraction,
        "get_per_process_memory_fraction": of_the_one(
            lambda: 1.0 if allocator.allowed_bytes is None else allocator.allowed_bytes / card.total_bytes
        ),
        "ipc_collect": always(None),
        "can_device_access_peer": always(False),
        "get_allocator_backend": always("native"),
        "get_sync_debug_mode": always(0),
        "graph_pool_handle": refuse(_ONE_STREAM),
        "host_memory_stats": refuse(_NO_HOST),
        "is_current_stream_capturing": always(False),
        "set_sync_debug_mode": always(None),  # nothing waits
        "caching_allocator_alloc": refuse(_NO_RAW),
        "empty_cache": allocator.empty_cache,
    }
    # Not every torch has all of them.
    places: dict[tuple[Any, str], Callable[..., Any]] = {
        (torch.cuda, name): answer for name, answer in cuda.items() if name not in _NEWER or hasattr(torch.cuda, name)
    }
    places |= {(torch.cuda.nvtx, name): always(None) for name in ("mark", "range_pop", "range_push")}
    places |= {
        (torch.nested, name): refuse(_NO_NESTED)
        for name in ("as_nested_tensor", "nested_tensor", "nested_tensor_from_jagged")
    }
    places[lazy.LazyModuleMixin, "__init__"] = refuse(_NO_LAZY)
    places[sys.modules[torch.nn.DataParallel.__module__], "_check_balance"] = always(None)  # of one card
    places[torch.nn.parallel.comm, "scatter"] = lambda tensor, *_, **__: (tensor.to("cuda:0"),)
    places[FakeTensor, "as_subclass"] = refuse(_NO_SUBCLASS)
    places[FakeTensor, "__new__"] = _parameters(FakeTensor.__new__)
    accelerator = _accelerator(cuda)
    places |= {(torch.accelerator, name): answer for name, answer in accelerator.items()}
    own = torch.accelerator.memory
    places |= {(own, name): answer for name, answer in accelerator.items() if hasattr(own, name)}
    # What is said there is also asked for there, and by functions that were imported before.
    memory = torch.cuda.memory
    places |= {(memory, name): answer for name, answer in cuda.items() if hasattr(memory, name)}
    places[memory, "_snapshot"] = lambda *_, **__: allocator.snapshot()
    places[memory, "_record_memory_history"] = lambda *_, **__: warnings.warn(_NO_HISTORY, stacklevel=2)
    for name in ("Stream", "Event", "CUDAGraph", "MemPool"):
        places[torch.cuda, name] = _refused_class(getattr(torch.cuda, name), _ONE_STREAM)
    for name in ("Stream", "Event"):
        places[torch, name] = _refused_class(getattr(torch, name), _ONE_STREAM)
    for name in ("current_stream", "default_stream"):
        places[torch.cuda, name] = refuse(_ONE_STREAM)
    places |= {(forward_ad, name): refuse(_NO_FORWARD) for name in ("enter_dual_level", "make_dual")}
    places |= {(torch.autograd, "backward"): refuse(_NO_BACKWARD), (torch.autograd, "grad"): refuse(_NO_BACKWARD)}
    places |= {
        (torch, "compile"): _eagerly,
        (torch.export, "export"): refuse(_NO_EXPORT),
        (torch.jit, "trace"): refuse(_NO_TRACE),
        (torch.jit, "trace_module"): refuse(_NO_TRACE),
        (torch.backends.cudnn, "is_acceptable"): always(False),  # of recurrent networks, which are refused
        (torch.overrides, "has_torch_function"): _telling_of_the_fast_path(torch.overrides.has_torch_function),
        (torch.nn.init, "_no_grad_trunc_normal_"): _drawn,
        (torch._C._nn, "_parse_to"): _with_numbers(torch._C._nn._parse_to),
    }
    # Workers of a data loader read for real, and what they send is real.
    for owner, name in ((worker, "_worker_loop"), (reductions, "rebuild_tensor")):
        places[owner, name] = _for_real(getattr(owner, name))
    places[torch.nn.Parameter, "__deepcopy__"] = _for_real_ones(torch.nn.Parameter.__deepcopy__)
    # What NumPy shares it shares with a real tensor.
    places |= {(torch, name): _for_real(getattr(torch, name)) for name in ("from_numpy", "frombuffer")}
    places[torch.storage, "_load_from_bytes"] = _for_real(torch.storage._load_from_bytes)
    places[torch, "Generator"] = _generator(torch.Generator)
    places[fake_tensor, "init_gpu_context"] = always(None)  # there is no GPU to wake, or it is none of ours
    compiled = sys.modules.get("torch._dynamo.eval_frame")
    if compiled is not None:
        places[compiled, "_callback_from_stance"] = _eagerly_now
    # transformers builds masks for fake tensors that no real run has: it must take these for real.
    their_checks = sys.modules.get("transformers.utils.import_utils")
    if their_checks is not None:
        places[their_checks, "is_fake_tensor"] = always(False)
    return places


def _only_one(device: Any) -> int:
    """The number of the one card. Raises RuntimeError, in torch's words, for that of another."""
    index = device if type(device) is int else torch.device(device).index
    if index not in (None, -1, 0):
        raise RuntimeError(f"CUDA error: invalid device ordinal: {device}, of one simulated card")
    return 0


def _accelerator(cuda: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """`torch.accelerator`, whose answers are those of `torch.cuda` under other names."""
    others = {
        "current_device_index": "current_device",
        "set_device_index": "set_device",
        "get_memory_info": "mem_get_info",
    }
    others |= {name: name for name in cuda if name != "get_device_capability"}  # which there is of dtypes
    own = {name: cuda[other] for name, other in others.items() if hasattr(torch.accelerator, name)}
    own["current_accelerator"] = lambda check_available=False: torch.device("cuda")
    own["current_stream"] = lambda *_: SimpleNamespace(is_capturing=lambda: False)  # what optimizers ask it
    return own


def _refused_class(own: Any, why: str) -> Any:
    """Of the name and kind of `own`, so that it can be asked for, and none can be made."""

    def refusing(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(why)

    return type(own.__name__, (own,), {"__new__": refusing})


def _generator(own: Any) -> Any:
    """`torch.Generator`, of which one on the card is a CPU's that says it is there: nothing is drawn."""

    class Kind(type(own)):  # type: ignore[misc]
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, own)

    class OnCard(own, metaclass=Kind):  # type: ignore[misc]
        device = torch.device("cuda", 0)

    class Generator(own, metaclass=Kind):  # type: ignore[misc]
        def __new__(cls, device: Any = "cpu") -> Any:
            on_card = torch.device(device).type == "cuda"
            if on_card:
                _only_one(device)
            return own.__new__(OnCard, "cpu") if on_card else own(device)

    # By which generators are pickled: inside it is this one's, outside torch's own.
    Generator.__module__, Generator.__qualname__ = "torch", "Generator"
    return Generator


def _for_real(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def real(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return function(*args, **kwargs)

    return real


def _for_real_ones(function: Callable[..., Any]) -> Callable[..., Any]:
    for_real = _for_real(function)
    return lambda tensor, *args: (for_real if is_real(tensor) else function)(tensor, *args)


def _parameters(new: Callable[..., Any]) -> Any:
    """What was made as a parameter says that it is a `FakeTensor`: one more of its type is a parameter (accelerate)."""

    @functools.wraps(new)
    def making(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], torch.Tensor) and kwargs.keys() <= {"requires_grad"}:
            return torch.nn.Parameter(*args, **kwargs)
        return new(cls, *args, **kwargs)

    return staticmethod(making)


def _eagerly(model: Any = None, **_: Any) -> Any:
    """`torch.compile`, also as a decorator."""
    warnings.warn(_EAGER, stacklevel=2)
    return model if model is not None else lambda function: function


def _eagerly_now(compiling: Any) -> Any:
    """What runs when a function is called that was compiled outside, as decorated ones are, or is never compiled."""
    if not callable(compiling):
        return compiling
    warnings.warn(_EAGER, stacklevel=3)
    return None


def _telling_of_the_fast_path(asked: Callable[..., bool]) -> Callable[..., bool]:
    """Modules ask it last before they take the fused path: only since a simulation looks on they do not."""

    def telling(asked_of: Any) -> bool:
        if sys._getframe(1).f_globals["__name__"].startswith("torch.nn.modules.") and not torch.is_grad_enabled():
            warnings.warn(_FAST_PATH, stacklevel=2)
        return asked(asked_of)

    return telling


def _drawn(tensor: torch.Tensor, mean: float = 0.0, std: float = 1.0, *_: Any, **__: Any) -> torch.Tensor:
    """`trunc_normal_` draws until all values fit, which depends on them."""
    with torch.no_grad():
        return tensor.normal_(mean, std)


def _with_numbers(parse: Callable[..., Any]) -> Callable[..., Any]:
    """`Module.to(0)` is `Module.to("cuda:0")`."""

    def parsing(*args: Any, **kwargs: Any) -> Any:
        if args and type(args[0]) is int:
            args = (torch.device("cuda", args[0]), *args[1:])
        return parse(*args, **kwargs)

    return parsing
