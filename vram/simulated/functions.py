"""Functions of torch that a dispatch mode sees too late, or not at all: each has a handler in a table."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import _VF, Tensor
from torch._prims_common import suggest_memory_format
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

from vram.simulated.assumptions import FINITENESS
from vram.simulated.device import DEVICE, cuda_device, names_the_card, with_index
from vram.simulated.kernels.batch_norm import by_cudnn
from vram.simulated.kernels.composite import one_hot, takes_one_hot
from vram.simulated.known_values import KnownValues
from vram.simulated.modes import IS_CLOSE, joining_in_place
from vram.simulated.operations import is_real, tensors, unmodelled
from vram.torch_hooks.dispatch import dispatches

_TO_NUMPY: set[Any] = {torch.Tensor.numpy, torch.Tensor.__array__}
_BY_ELEMENT: set[Any] = {torch.Tensor.apply_, torch.Tensor.map_, torch.Tensor.map2_}
# Functions that hand out a tensor's own memory, or read its elements: of a real tensor they stay real.
_OF_REAL_MEMORY: set[Any] = _TO_NUMPY | _BY_ELEMENT
_OF_REAL_MEMORY |= {
    getattr(torch.Tensor, name)
    for name in ("__deepcopy__", "__dlpack__", "__format__", "__reduce_ex__", "__repr__", "share_memory_", "tolist")
}
# Functions that make compressed sparse tensors of their parts.
_COMPRESSED: set[Any] = {getattr(torch, f"sparse_{kind}_tensor") for kind in ("bsc", "bsr", "compressed", "csc", "csr")}
# Error texts of C++ code that reads a tensor's memory past every mode.
_WITHOUT_BYTES = ("its data is not allocated yet", "Cannot access data pointer of")
# Types of most arguments, which neither are devices nor contain any.
_NO_DEVICES = frozenset(
    (FakeTensor, Tensor, torch.nn.Parameter, int, float, bool, type(None), torch.dtype, torch.Size, slice, type(...))
)
# Functions that autograd would take apart before a mode sees them.
_SEEN_WHOLE: set[Any] = {torch.nn.functional.linear}


class CardFunctions(TorchFunctionMode):
    """Inside, "cuda" and 0 mean cuda:0, and functions that need a tensor's bytes get known values or are refused.

    A torch without CUDA would silently take "cuda" for the meta device. `turn` is for other threads: entered where a
    function names the card, as torch would otherwise initialise CUDA before it consults the modes of the thread.
    """

    def __init__(
        self, known_values: KnownValues, turn: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        super().__init__()
        self.known_values, self._turn = known_values, turn

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return self._call(func, args, dict(kwargs or {}))
        except torch.OutOfMemoryError as error:  # out here: inner frames, which hold tensors, go with the traceback
            del args, kwargs
            raise error.with_traceback(None)  # noqa: B904 (it is the same)

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func not in _SPECIAL:
            return self._on_card(func, *_with_indices(args, kwargs))
        if func in _OF_REAL_MEMORY and all(map(is_real, operands := list(filter(_is_tensor, args)))):
            self.known_values.refuse_lost(operands, f"Tensor.{func.__name__}")
            with _disable_current_modes():
                return func(*args, **kwargs)
        handler = _HANDLERS.get(func)
        if handler is not None and (result := handler(self, func, args, kwargs)) is not _NOT_HANDLED:
            return result
        rewrite = _REWRITES.get(func)
        if rewrite is not None:
            func, args = rewrite(self, func, args, kwargs)
        return self._on_card(func, *_with_indices(args, kwargs))

    def _on_card(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The function itself, on the card where that is named."""
        try:
            if self._turn is not nullcontext and any(map(names_the_card, (*args[1:], kwargs.get("device")))):
                with self._turn():
                    return self._whole(func, args, kwargs)
            return self._whole(func, args, kwargs)
        except torch.OutOfMemoryError:
            raise  # a RuntimeError too
        except RuntimeError as error:
            if any(words in str(error) for words in _WITHOUT_BYTES):
                raise unmodelled(torch.overrides.resolve_name(func), args) from error
            raise

    def _whole(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if func in _SEEN_WHOLE and not torch.is_grad_enabled() and not any(map(_dispatches, args)):
            with torch._C._AutoDispatchBelowAutograd():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def _dispatches(value: Any) -> bool:
    return isinstance(value, Tensor) and dispatches(type(value))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _with_indices(args: Any, kwargs: dict[str, Any]) -> Any:
    """Arguments in which every CUDA device has an index."""
    if type(device := kwargs.get("device")) is int or device == "cuda":
        kwargs["device"] = cuda_device(device)
    if not (_may_name_devices(args) or _may_name_devices(kwargs.values())):
        return args, kwargs
    args = tuple(DEVICE if isinstance(value, str) and value == "cuda" else value for value in args)
    return tree_map_only(torch.device, with_index, (args, kwargs))


def _may_name_devices(values: Iterable[Any]) -> bool:
    for value in values:
        kind = type(value)
        if kind not in _NO_DEVICES and ((kind is not list and kind is not tuple) or _may_name_devices(value)):
            return True
    return False


# Handlers: what to return instead, or that the function goes on as any other.

_NOT_HANDLED = object()
_Handler = Callable[[CardFunctions, Any, Any, dict[str, Any]], Any]


def _device(_: CardFunctions, func: Any, args: Any, kwargs: Any) -> Any:
    if args and type(args[0]) is int:  # an accelerator's number, and a torch without CUDA has no accelerator
        return cuda_device(*args)
    return with_index(func(*args, **kwargs))


def _to_numpy(mode: CardFunctions, _: Any, args: Any, kwargs: Any) -> Any:
    return _numpy(mode.known_values, *args, **kwargs)


def _numpy(known_values: KnownValues, tensor: Tensor, dtype: Any = None, *, force: bool = False) -> Any:
    if tensor.device.type == "cuda" and not force:  # in torch's words
        raise TypeError(
            f"can't convert {tensor.device} device type tensor to numpy. "
            "Use Tensor.cpu() to copy the tensor to host memory first."
        )
    with _disable_current_modes():
        array = known_values.require(tensor, "Tensor.numpy", copied=tensor.device.type != "cpu").numpy(force=True)
    return array if dtype is None or type(dtype) is bool else array.astype(dtype)


def _dlpack(mode: CardFunctions, _: Any, args: Any, kwargs: Any) -> Any:
    """A capsule of known values: a fake tensor's own would have the address of nothing."""
    if not isinstance(args[0], FakeTensor):
        return _NOT_HANDLED
    value = mode.known_values.require(args[0], "Tensor.__dlpack__", copied=args[0].device.type != "cpu")
    with _disable_current_modes():
        return value.__dlpack__(*args[1:], **kwargs)


def _one_hot(_: CardFunctions, __: Any, args: Any, kwargs: Any) -> Any:
    return one_hot(*args, **kwargs) if args and takes_one_hot(args[0]) else _NOT_HANDLED


def _by_element(mode: CardFunctions, func: Any, args: Any, kwargs: Any) -> Any:
    if not isinstance(args[0], FakeTensor) or args[0].device.type != "cpu":
        return _NOT_HANDLED
    values = [mode.known_values.require(each, f"Tensor.{func.__name__}", copied=False) for each in tensors(args)]
    with _disable_current_modes():
        func(*values, *args[len(values) :])
    return args[0]


def _format(_: CardFunctions, __: Any, args: Any, kwargs: Any) -> Any:
    return format(args[0].item(), args[1]) if args[0].dim() == 0 else _NOT_HANDLED


def _channel_shuffle(_: CardFunctions, __: Any, args: Any, kwargs: Any) -> Any:
    """As C++ composes it on a card (native/ChanelShuffle.cpp): of single groups, or single channels, it is a view."""
    if kwargs or not names_the_card(args[0]) or args[0].dim() < 3 or args[1] < 1 or args[0].shape[1] % args[1]:
        return _NOT_HANDLED
    x, groups = args
    apart = x.view(x.shape[0], groups, x.shape[1] // groups, -1)
    return apart.permute(0, 2, 1, 3).contiguous().reshape(x.shape)


def _finiteness(mode: CardFunctions, func: Any, args: Any, kwargs: Any) -> Any:
    result = mode._on_card(func, args, kwargs)
    mode.known_values.finite(result, FINITENESS[func])
    return result


def _is_close(mode: CardFunctions, func: Any, args: Any, kwargs: Any) -> Any:
    """Where there may be a graph, autograd takes it apart before a mode sees it."""
    operands = tensors((args, kwargs))
    if len(operands) != 2 or not any(each.device.type == "cuda" for each in operands):
        return _NOT_HANDLED
    with joining_in_place(IS_CLOSE, operands):
        return mode._on_card(func, args, kwargs)


def _share_memory(_: CardFunctions, __: Any, args: Any, kwargs: Any) -> Any:
    return args[0] if isinstance(args[0], FakeTensor) else _NOT_HANDLED  # no other process sees it


def _pin_memory(_: CardFunctions, __: Any, args: Any, kwargs: Any) -> Any:
    return args[0].clone()  # in main memory, where nothing is counted


def _recurrent(_: CardFunctions, func: Any, args: Any, kwargs: Any) -> Any:
    if args[0].device.type == "cuda":
        raise NotImplementedError(f"simulated CUDA does not model cuDNN's {func.__name__}: measure on a GPU")
    return _NOT_HANDLED


def _unmodelled(_: CardFunctions, func: Any, args: Any, kwargs: Any) -> Any:
    _, named = _with_indices((), kwargs)
    if names_the_card(named.get("device")) or any(map(names_the_card, tensors((args, kwargs)))):
        raise unmodelled(torch.overrides.resolve_name(func), [])
    return _NOT_HANDLED


def _deepcopy(mode: CardFunctions, func: Any, args: Any, kwargs: Any) -> Any:
    if _dispatches(args[0]):  # a copy of its parts, as torch makes it of tensors without an address; it asks for one
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            return func(*args, **kwargs)
    if not args[0].is_leaf or args[0].layout is not torch.strided:
        return _NOT_HANDLED
    return _deepcopied(mode.known_values, *args, **kwargs)


def _deepcopied(known_values: KnownValues, tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """A copy as torch makes it of a tensor with an address: the whole storage, once in a memo."""
    if id(tensor) in memo:
        return cast(Tensor, memo[id(tensor)])
    with torch.no_grad():
        if isinstance(tensor, torch.nn.Parameter):  # what it shows of its storage
            data = tensor.detach().clone(memory_format=torch.preserve_format)
            new: Tensor = torch.nn.Parameter(data, tensor.requires_grad)
        else:
            new = _copied_with_storage(known_values, tensor, memo)
    memo[id(tensor)] = new
    return new


def _copied_with_storage(known_values: KnownValues, tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    storage = copy.deepcopy(tensor.untyped_storage(), memo)
    new: Tensor = tensor.new_empty([]).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
    known_values.copied(tensor, new, memo)
    new = new.conj_physical() if tensor.is_conj() else new
    new = new.neg() if tensor.is_neg() else new
    new.requires_grad_(tensor.requires_grad)
    if tensor.grad is not None:
        new.grad = copy.deepcopy(tensor.grad, memo)
    attributes = {name: value for name, value in vars(tensor).items() if name not in vars(new)}
    vars(new).update(copy.deepcopy(attributes, memo))
    return new


_HANDLERS: dict[Any, _Handler] = {
    torch.device: _device,
    **dict.fromkeys(_TO_NUMPY, _to_numpy),
    torch.Tensor.__dlpack__: _dlpack,
    torch.nn.functional.one_hot: _one_hot,
    **dict.fromkeys(_BY_ELEMENT, _by_element),
    torch.Tensor.__format__: _format,
    torch.channel_shuffle: _channel_shuffle,
    **dict.fromkeys(FINITENESS, _finiteness),
    **dict.fromkeys((torch.isclose, torch.Tensor.isclose), _is_close),
    torch.Tensor.share_memory_: _share_memory,
    torch.Tensor.pin_memory: _pin_memory,
    **dict.fromkeys((_VF.lstm, _VF.gru, _VF.rnn_tanh, _VF.rnn_relu), _recurrent),
    **dict.fromkeys((torch.ctc_loss, torch.nn.functional.ctc_loss), _unmodelled),  # cuDNN's, or a kernel of torch's
    **dict.fromkeys(_COMPRESSED, _unmodelled),
    torch.Tensor.__deepcopy__: _deepcopy,
}


# Rewrites: the function to call, and its arguments; keyword arguments are changed in place.

_Rewrite = Callable[[CardFunctions, Any, Any, dict[str, Any]], tuple[Any, Any]]


def _cuda(_: CardFunctions, __: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    device = kwargs.pop("device", None) if len(args) < 2 else args[1]
    return torch.Tensor.to, (args[0], cuda_device(device), *args[2:])


def _to(_: CardFunctions, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    if len(args) > 1 and type(args[1]) is int:
        args = (args[0], cuda_device(args[1]), *args[2:])
    return func, args


def _set_data(mode: CardFunctions, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    mode.known_values.replace(*args)
    return func, args


def _from_lists(_: CardFunctions, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Numbers instead of the tensors of one element in a list."""
    if args and isinstance(args[0], list | tuple):
        args = tree_map_only(Tensor, lambda each: each.item() if each.dim() == 0 else each, args[0]), *args[1:]
    return func, args


def _batch_norm(_: CardFunctions, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """cuDNN reads, and the graph keeps, a copy of what has gaps (`_batch_norm_impl_index` in Normalization.cpp)."""
    x, weight = args[0], kwargs.get("weight")
    if names_the_card(x) and by_cudnn(x, weight, kwargs.get("training", False)):
        args = x.contiguous(memory_format=suggest_memory_format(x)), *args[1:]
    return func, args


_REWRITES: dict[Any, _Rewrite] = {
    torch.nn.functional.batch_norm: _batch_norm,  # it passes all but the statistics by name
    torch.Tensor.cuda: _cuda,
    torch.Tensor.to: _to,
    torch.Tensor.data.__set__: _set_data,  # type: ignore[attr-defined]
    torch.tensor: _from_lists,
    torch.as_tensor: _from_lists,
}

_SPECIAL = frozenset({*_OF_REAL_MEMORY, *_HANDLERS, *_REWRITES})
