"""Replacements for torch outside `torch.cuda` in a simulation: refusals, moves of modules, generators, compilers."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.multiprocessing import reductions
from torch.nn import functional
from torch.nn.modules import lazy
from torch.optim import optimizer
from torch.utils import _foreach_utils
from torch.utils.data._utils import worker

from vram.frames import line_here
from vram.simulated.device import DEVICE, card_index
from vram.simulated.known_values import KnownValues
from vram.simulated.operations import is_real
from vram.simulated.replacements import Places, always, for_real, refuse
from vram.torch_hooks.dispatch import dispatches

_NO_FORWARD = "simulated CUDA does not model what forward-mode derivatives allocate: measure on a GPU"
_NO_NESTED = "simulated CUDA does not model nested tensors: measure on a GPU, or pad"
_NO_LAZY = "a simulated parameter has its size from the start: give the module its sizes, or measure on a GPU"
_NO_SUBCLASS = (
    "simulated CUDA models subclasses of Tensor that are made of tensors (_make_wrapper_subclass), and no others: "
    "measure on a GPU"
)
_EAGER = "simulated CUDA runs what torch.compile was given eagerly, and compiled code allocates otherwise"
_NO_EXPORT = "simulated CUDA would count what torch.export makes while it traces: run the module itself"
_NO_TRACE = "simulated CUDA has no values for what torch.jit.trace checks: trace outside, or run the module itself"
_FAST_PATH = (
    "on a card nn.MultiheadAttention and nn.TransformerEncoder take a fused path, whose memory simulated CUDA does not "
    "model: figures are those after torch.backends.mha.set_fastpath_enabled(False)"
)
# Functions that let an operand go before they end: a mode that such a function is passed to would have it until then.
_LET_GO = {
    getattr(functional, name).__code__
    for name in ("embedding", "embedding_bag", "gaussian_nll_loss", "multi_head_attention_forward")
}


def torch_places(mode: FakeTensorMode, known_values: KnownValues) -> Places:
    """Replacements for functions of torch outside `torch.cuda`.

    Parameters of `mode` can be moved and cast; their values are in `known_values`.
    """
    return (
        _refusals()
        | _functions()
        | _modules(mode, known_values)
        | _optimizers()
        | _compilers()
        | _real_work()
        | _others()
    )


def _functions() -> Places:
    """Whether functions of torch.nn are passed to a mode as a whole."""
    variadic, of_tuple = "has_torch_function_variadic", "has_torch_function"
    return {
        (functional, variadic): _unless_let_go(getattr(functional, variadic), lambda operands: operands),
        (functional, of_tuple): _unless_let_go(getattr(functional, of_tuple), lambda operands: operands[0]),
    }


def _unless_let_go(is_passed_on: Callable[..., bool], operands: Callable[[Any], Any]) -> Callable[..., bool]:
    def answer(*args: Any) -> bool:
        if sys._getframe(1).f_code in _LET_GO and all(map(_is_plain, operands(args))):
            return False
        return is_passed_on(*args)

    return answer


def _is_plain(value: Any) -> bool:
    """Whether a value's type leaves functions of torch as they are."""
    kind = type(value)
    return not isinstance(value, torch.Tensor) or (
        kind is torch.Tensor or kind.__torch_function__ is torch._C._disabled_torch_function_impl
    )


def _refusals() -> Places:
    refused = {
        _NO_NESTED: (torch.nested, ("as_nested_tensor", "nested_tensor", "nested_tensor_from_jagged")),
        _NO_LAZY: (lazy.LazyModuleMixin, ("__init__",)),
        _NO_SUBCLASS: (FakeTensor, ("as_subclass",)),
        _NO_FORWARD: (forward_ad, ("enter_dual_level", "make_dual")),
        _NO_EXPORT: (torch.export, ("export",)),
        _NO_TRACE: (torch.jit, ("trace", "trace_module")),
    }
    return {(owner, name): refuse(why) for why, (owner, names) in refused.items() for name in names}


def _modules(mode: FakeTensorMode, known_values: KnownValues) -> Places:
    """How modules are moved, spread and initialised."""
    return {
        # One card is balanced.
        (sys.modules[torch.nn.DataParallel.__module__], "_check_balance"): always(None),
        (torch.nn.parallel.comm, "scatter"): lambda tensor, *_, **__: (tensor.to(DEVICE),),
        (FakeTensor, "__new__"): _parameters(FakeTensor.__new__),
        (FakeTensor, "tolist"): _at_once(FakeTensor.tolist, known_values),
        (torch.backends.cudnn, "is_acceptable"): always(False),  # of recurrent networks, which are refused
        (torch.nn.init, "_no_grad_trunc_normal_"): _drawn,
        (torch._C._nn, "_parse_to"): _with_numbers(torch._C._nn._parse_to),
        (torch.Tensor, "_make_subclass"): staticmethod(_made_of_real(torch.Tensor._make_subclass)),
        (torch.utils, "swap_tensors"): _swapping(mode, known_values),
    }


def _at_once(one_by_one: Callable[[FakeTensor], Any], known_values: KnownValues) -> Callable[[FakeTensor], Any]:
    """`FakeTensor.tolist`, which reads a known value as a whole: `one_by_one` runs operations for each element."""
    of_real = for_real(torch.Tensor.tolist)

    def tolist(tensor: FakeTensor) -> Any:
        if known_values.of(tensor) is None:
            return one_by_one(tensor)
        return of_real(known_values.require(tensor, "Tensor.tolist", copied=False))

    return tolist


def _made_of_real(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Subclasses that are a tensor, and not made of some: of real ones alone."""

    @functools.wraps(make)
    def wrapped(cls: Any, data: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if isinstance(data, FakeTensor):
            raise NotImplementedError(f"{_NO_SUBCLASS}; {cls.__name__} at {line_here()}")
        return make(cls, data, *args, **kwargs)

    return wrapped


def _compilers() -> Places:
    """Replacements for what would run a module otherwise than eagerly."""
    places: Places = {
        (torch, "compile"): _eagerly,
        (torch.overrides, "has_torch_function"): _warning_of_the_fast_path(torch.overrides.has_torch_function),
    }
    compiled = sys.modules.get("torch._dynamo.eval_frame")
    if compiled is not None:
        places[compiled, "_callback_from_stance"] = _eagerly_now
    return places


def _real_work() -> Places:
    """Functions without modes: workers of a data loader read and send real tensors, and NumPy shares a real one's."""
    functions = [(worker, "_worker_loop"), (reductions, "rebuild_tensor"), (torch.storage, "_load_from_bytes")]
    functions += [(torch, "from_numpy"), (torch, "frombuffer")]
    places: Places = {(owner, name): for_real(getattr(owner, name)) for owner, name in functions}
    places[torch.nn.Parameter, "__deepcopy__"] = _for_real_ones(torch.nn.Parameter.__deepcopy__)
    return places


def _others() -> Places:
    places: Places = {
        (torch, "Generator"): _generator(torch.Generator),
        (fake_tensor, "init_gpu_context"): always(None),  # a GPU that is there is none of ours
    }
    # transformers builds masks for fake tensors that no real run has: it must take these for real.
    their_checks = sys.modules.get("transformers.utils.import_utils")
    if their_checks is not None:
        places[their_checks, "is_fake_tensor"] = always(False)
    return places


def _optimizers() -> dict[tuple[Any, str], Any]:
    """Which tensors optimizers and the clipping of gradients pass on as lists (foreach): on a card, all plain ones."""
    name = "_foreach_supported_types"
    return {(owner, name): [*getattr(owner, name), FakeTensor] for owner in (optimizer, _foreach_utils)}


def _swapping(mode: FakeTensorMode, known_values: KnownValues) -> Callable[..., None]:
    """`torch.utils.swap_tensors`, with which `Module.to` moves fake parameters; those it refuses move as real ones."""
    swap = torch.utils.swap_tensors
    memo = mode.fake_tensor_converter.meta_converter.tensor_memo  # what the mode knows its tensors by

    def swapping(first: torch.Tensor, second: torch.Tensor) -> None:
        if dispatches(type(first)):  # made of parts: torch swaps them for real tensors too
            swap(first, second)  # type: ignore[no-untyped-call]
            return
        memo.clear()
        with known_values.swapping(first, second):
            try:
                swap(first, second)  # type: ignore[no-untyped-call]
            except RuntimeError:  # views of it are alive, or somebody holds it weakly
                first.data = second
                first.fake_device = second.fake_device  # type: ignore[attr-defined]
                return
        # `Module.to` holds the second until it has moved the next: not what the first was, of which the card is rid.
        if "meta" in (first.device.type, second.device.type):  # one there can't have another's data
            second.data = second.new_empty(0)
            return
        second.data = first.data
        second.fake_device = first.fake_device  # type: ignore[attr-defined]

    return swapping


def _generator(own: Any) -> Any:
    """`torch.Generator`: one on the card is a CPU's that says it is there, as nothing is drawn."""

    class Kind(type(own)):  # type: ignore[misc]
        def __instancecheck__(cls, instance: Any) -> bool:
            return isinstance(instance, own)

    class OnCard(own, metaclass=Kind):  # type: ignore[misc]
        device = DEVICE

    class Generator(own, metaclass=Kind):  # type: ignore[misc]
        def __new__(cls, device: Any = "cpu") -> Any:
            on_card = torch.device(device).type == "cuda"
            if on_card:
                card_index(device)
            return own.__new__(OnCard, "cpu") if on_card else own(device)

    # Pickles have this name: inside it is this class's, outside torch's own.
    Generator.__module__, Generator.__qualname__ = "torch", "Generator"
    return Generator


def _for_real_ones(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, without any mode where its first argument is a real tensor."""
    real = for_real(function)
    return lambda tensor, *args: (real if is_real(tensor) else function)(tensor, *args)


def _parameters(new: Callable[..., Any]) -> Any:
    """`FakeTensor.__new__`, which makes a parameter of a tensor.

    The type of a simulated parameter is `FakeTensor`, and accelerate makes another one by its type.
    """

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


def _eagerly_now(compiler: Any) -> Any:
    """The callback of a function that was compiled outside, as decorated ones are, or that is never compiled."""
    if not callable(compiler):
        return compiler
    warnings.warn(_EAGER, stacklevel=3)
    return None


def _warning_of_the_fast_path(has_torch_function: Callable[..., bool]) -> Callable[..., bool]:
    """`torch.overrides.has_torch_function`, the last thing that modules check before they take the fused path.

    They do not take it inside a simulation only because a mode is on.
    """

    def warning(tensors: Any) -> bool:
        if sys._getframe(1).f_globals["__name__"].startswith("torch.nn.modules.") and not torch.is_grad_enabled():
            warnings.warn(_FAST_PATH, stacklevel=2)
        return has_torch_function(tensors)

    return warning


def _drawn(tensor: torch.Tensor, mean: float = 0.0, std: float = 1.0, *_: Any, **__: Any) -> torch.Tensor:
    """`trunc_normal_`, which draws until all values fit, and so depends on them."""
    with torch.no_grad():
        return tensor.normal_(mean, std)


def _with_numbers(parse: Callable[..., Any]) -> Callable[..., Any]:
    """The parser of `Module.to`, for which 0 is "cuda:0"."""

    def parsing(*args: Any, **kwargs: Any) -> Any:
        if args and type(args[0]) is int:
            args = (torch.device("cuda", args[0]), *args[1:])
        return parse(*args, **kwargs)

    return parsing
