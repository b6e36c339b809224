"""Backward passes on a simulated card: autograd's own engine, brought to allocate what it would on a card.

Sources: torch/csrc/autograd/engine.cpp and input_buffer.cpp. Between the nodes of a graph the engine asks for the
streams of CUDA tensors, which a torch without CUDA does not have. So its C++ code takes the card's tensors for those of
the meta device, all in the calling thread. It adds gradients up in place only where they are of no subclass, which fake
tensors are: its sums are made in place here, under its other conditions.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import graph
from torch.autograd.grad_mode import set_multithreading_enabled

from vram.simulated.node_numbers import NodeNumbers
from vram.simulated.operations import tensors
from vram.simulated.replacements import Places
from vram.simulated.streams import Streams
from vram.simulated.torch_build import has_gpu
from vram.torch_hooks import dispatch
from vram.torch_hooks.dispatch import dispatches

_aten = torch.ops.aten
_META = torch.device("meta")
_DEVICE_OF = torch.ops.prim.device.default
_TORCH = Path(torch.__file__).parent
# Formulas of derivatives write into what they have just made; for subclasses, as fake tensors, into a copy instead.
_JUST_MADE = {_aten.new_zeros.default, _aten.zeros.default, _aten.zeros_like.default, _aten.isnan.default}
_JUST_MADE |= {_aten.arange.start_step, _aten.ge.Tensor, _aten.gt.Tensor, _aten.le.Tensor, _aten.lt.Tensor}
_WRITES = {
    _aten.index_add.default: _aten.index_add_.default,
    _aten.index_fill.int_Tensor: _aten.index_fill_.int_Tensor,
    _aten.index_put.default: _aten.index_put_.default,
    _aten.logical_and.default: _aten.logical_and_.default,
    _aten.logical_or.default: _aten.logical_or_.default,
    _aten.masked_scatter.default: _aten.masked_scatter_.default,
    _aten.put.default: _aten.put_.default,
    _aten.scatter.src: _aten.scatter_.src,
    _aten.scatter_add.default: _aten.scatter_add_.default,
}
# In these, products and differences are written into whatever was made but negatives, unless it gets its own graph.
_LOSSES = {"BinaryCrossEntropyBackward0", "BinaryCrossEntropyWithLogitsBackward0"}
_WRITES_OF_LOSSES = {_aten.sub.Tensor: _aten.sub_.Tensor, _aten.mul.Tensor: _aten.mul_.Tensor}
# Formulas that a card chooses by whether a value is 0, and the first operation of those that subclasses get. Those of
# prod unpack their result first, also where they do nothing else.
_BY_ZEROS = {
    "CumprodBackward0": _aten.eq.Scalar,
    "ProdBackward0": _aten.detach.default,
    "ProdBackward1": _aten.detach.default,
}
# A formula that computes in the type that sums on the device are made in, and takes the card for a CPU.
_SUMMED = "RenormBackward0"
_ON_CARD = {torch.float64: torch.float32, torch.complex128: torch.complex64}
# Files of the frames between C++ code and the mode that follows a simulated card.
_BETWEEN = {
    str(Path(__file__).with_name("modes.py")),
    dispatch.__file__,
    str(_TORCH / "_ops.py"),
    str(_TORCH / "_dynamo" / "eval_frame.py"),
}
_NESTED_AUTOCAST = (
    "simulated CUDA does not model what autograd's thread casts anew where a backward pass inside of torch.autocast "
    "enters torch.autocast, as checkpoints do: call backward() after the `with torch.autocast` block"
)
_FUNCTIONAL = "simulated CUDA does not model gradients of torch.func: use torch.autograd.grad, or measure on a GPU"

_NO_GPU = (
    "autograd's engine, in a torch that was built with CUDA, asks for a GPU at each backward pass, and there is none: "
    "install the CPU's build of torch, whose figures are the same, or measure on a GPU"
)

_ZEROS = (
    "simulated CUDA does not model the backward passes of prod and cumprod, which on a card depend on whether a value "
    "is 0: use sums of logarithms, or measure on a GPU"
)

_STREAMS = (
    "simulated CUDA does not model backward passes on another stream than the default one, nor of what ran there since "
    "the simulation was made: train on the default stream, or measure on a GPU"
)


class Card(Protocol):
    """A simulated card, as the engine uses it."""

    device: torch.device
    streams: Streams

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation."""
        ...


class _OfThread(threading.local):
    """The state of a thread's backward passes."""

    depth = 0  # how many are under way, one within the other
    autocasts = 0  # blocks of torch.autocast around the outermost
    asked = 0  # id of the tensor whose device the engine asked for just before
    node = -1, ""  # the number and the name of the node whose formula ran last
    made: tuple[int, ...] = ()  # ids of what that has made by operations of _JUST_MADE alone
    counts: Any = None  # references to the first term of the last sum, to its Python object, and to its storage
    sole: Any = None  # those of a gradient that nobody but the engine has


class Engine:
    """Autograd's engine on a simulated card."""

    def __init__(self, card: Card) -> None:
        self._card = card
        self._here = _OfThread()
        self._numbers = NodeNumbers()
        self._increment_autocast = torch.autocast_increment_nesting

    @property
    def runs(self) -> bool:
        """Whether this thread is in a backward pass, which on a card has a thread of its own."""
        return self._here.depth > 0

    def places(self) -> Places:
        """Replacements for the function that all backward passes go through, and for what they refuse."""
        return {
            (torch.autograd, "_engine_run_backward"): self.run_backward,
            (graph, "_engine_run_backward"): self.run_backward,
            (torch, "autocast_increment_nesting"): self._enter_autocast,
        }

    def run_backward(self, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Stand in for `torch.autograd.graph._engine_run_backward`."""
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise NotImplementedError(_FUNCTIONAL)
        if not self._card.streams.may_run_backward:
            raise NotImplementedError(_STREAMS)
        if torch.version.cuda and not has_gpu():
            raise NotImplementedError(_NO_GPU)
        here = self._here
        if not here.depth:
            here.autocasts = self._increment_autocast() - 1
            torch.autocast_decrement_nesting()
        here.depth += 1
        try:
            with set_multithreading_enabled(False):
                if here.sole is None:
                    with self._numbers.making(on_card=False):
                        self._learn_counts()
                if here.depth > 1:  # within another pass, whose thread it has on a card too
                    return torch.autograd.Variable._execution_engine.run_backward(outputs, *args, **kwargs)
                self._numbers.renumber([outputs] if isinstance(outputs, Tensor) else outputs)
                with self._numbers.making(on_card=True):
                    return torch.autograd.Variable._execution_engine.run_backward(outputs, *args, **kwargs)
        finally:
            here.depth -= 1

    def _enter_autocast(self) -> Any:
        if self.runs and self._here.autocasts:
            raise NotImplementedError(_NESTED_AUTOCAST)
        return self._increment_autocast()

    def _learn_counts(self) -> None:
        """Learn how many references there are to a gradient that nobody but the engine has: from one on no card."""
        with torch.inference_mode(False), torch.enable_grad():
            x = torch.zeros(1, device="cpu", requires_grad=True)
            y = x * 2
            total = y.sin() + y.cos()
            gradient = torch.ones(1, device="cpu")
        torch.autograd.Variable._execution_engine.run_backward(
            (total,), (gradient,), False, False, (x,), allow_unreachable=True, accumulate_grad=False
        )
        self._here.sole = self._here.counts
        if self._here.sole is None:
            raise RuntimeError(f"simulated CUDA saw no sum of gradients in autograd's engine, of torch {_version()}")

    def calls(self) -> bool:
        """Whether the operation that a mode sees comes from the engine's C++ code, and not from Python code."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code.co_filename in _BETWEEN:
            frame = frame.f_back
        return frame is not None and frame.f_code in _ENGINE

    def dispatch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Do what the engine calls, where that differs; else NotImplemented, and from now on `kwargs` name the card."""
        if func is _DEVICE_OF:
            self._here.asked = id(args[0])
            device = args[0].fake_device if isinstance(args[0], FakeTensor) else args[0].device
            return _META if device.type == "cuda" else device
        # Its sums are of gradients for whose device it has just asked; those of a node's formula are not.
        sums = func is _aten.add.Tensor and id(args[1]) == self._here.asked
        self._here.asked = 0
        made, makes, writes = self._of_formula(func)
        if self._here.node[1] == _SUMMED and args[0].dtype not in _ON_CARD and kwargs.get("dtype") in _ON_CARD:
            kwargs["dtype"] = _ON_CARD[kwargs["dtype"]]
        if sums and self._in_place(*args):
            self._card.run(_aten.add_.Tensor, args, kwargs)
            return args[0]
        if writes is not None and id(args[0]) in made and _plain(args):
            self._card.run(writes, args, kwargs)
            self._here.made = made
            return args[0]
        if kwargs.get("device") == _META:
            kwargs["device"] = self._card.device
        if makes and _plain(args):
            result = self._card.run(func, args, kwargs)
            self._here.made = (*made, id(result))
            return result
        if func is _aten._to_copy.default and _is_there(args[0], **kwargs):
            # Moved, as it seemed, from the meta device. A gradient with a graph of its own can't be its own result.
            return _aten.alias.default(args[0]) if torch.is_grad_enabled() else args[0]
        return NotImplemented

    def _of_formula(self, func: Any) -> tuple[tuple[int, ...], bool, Any]:
        """Ids of what the node's formula has just made, and may write into; whether the operation's result is such a
        tensor, too; and what would write into the first operand in the operation's place.
        """
        here, node = self._here, torch._C._current_autograd_node()
        number, name = (-1, "") if node is None else (node._sequence_nr(), node.name())
        made = here.made if (number, name) == here.node else ()
        here.node, here.made = (number, name), ()
        if name in _BY_ZEROS and func is _BY_ZEROS[name]:
            self._search_zeros(node)
        if name in _LOSSES and not torch.is_grad_enabled():
            return made, func is not _aten.neg.default, _WRITES_OF_LOSSES.get(func)
        return made, func in _JUST_MADE, _WRITES.get(func)

    def _search_zeros(self, node: Any) -> None:
        """Allocate what a card does to look for zeros in a product's factors, where there are none: the same whatever
        their values (`prod_backward` in FunctionsManual.cpp). Raises NotImplementedError where there are some.
        """
        (function, number), *_ = node.next_functions
        shape = function._input_metadata[number].shape
        if not shape:
            return  # a number's product is itself
        if 0 not in shape:
            raise NotImplementedError(_ZEROS)
        run = self._card.run
        mask = run(_aten.zeros.default, (list(shape),), {"dtype": torch.bool, "device": self._card.device})
        if node.name() == "ProdBackward0":
            run(_aten.nonzero.default, (mask,), {})
        else:
            dim = node._saved_dim % 2**64  # of an int64 that it gives as an unsigned one
            counts = run(_aten.sum.dim_IntList, (mask, [dim - 2**64 if dim >= 2**63 else dim], True), {})
            run(_aten.sum.default, (counts,), {})

    def _in_place(self, old: Tensor, new: Tensor) -> bool:
        """Whether the engine, on a card, would add `new` to `old` in place: `can_accumulate_inplace`."""
        here, storage = self._here, old.untyped_storage()
        references = old._use_count()  # type: ignore[attr-defined]
        here.counts = references, sys.getrefcount(old), torch._C._storage_Use_Count(storage._cdata)
        return (
            here.counts == here.sole
            and not torch.is_grad_enabled()
            and is_non_overlapping_and_dense_or_false(old)
            and not any(map(dispatches, (type(old), type(new))))
        )


def _plain(args: Any) -> bool:
    return not any(dispatches(type(each)) for each in tensors(args))


def _is_there(tensor: Tensor, *, device: Any = None, dtype: Any = None, layout: Any = None, **_: Any) -> bool:
    return tensor.device == device and dtype in (None, tensor.dtype) and layout in (None, tensor.layout)


def _version() -> str:
    return str(torch.__version__)


_ENGINE = (Engine.run_backward.__code__, Engine._learn_counts.__code__)
