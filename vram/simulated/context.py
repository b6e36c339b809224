"""A simulated CUDA device: fake tensors, whose storages are followed into a model of the caching allocator."""

from __future__ import annotations

import copy
import functools
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Self, TypeVar

import torch
from torch import _VF, Tensor
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only

from vram.cards import Card, find_card
from vram.frames import line_here
from vram.simulated.allocator import Block, CachingAllocator, SimulatedOutOfMemory, refuse_environment
from vram.simulated.cuda_api import answering
from vram.simulated.kernels.attention import FusedAttention, parts
from vram.simulated.kernels.call import Steps
from vram.simulated.kernels.composite import MADE_OF_OTHERS, grouped_product, one_hot, rms_norm, whole_on_card
from vram.simulated.kernels.cublas import is_product, lt_workspace_bytes, takes_lt, workspace_bytes
from vram.simulated.kernels.scratch import Call, allocated, preparation, scratch
from vram.simulated.known_values import Shadows, aliases, is_real, tensors, unmodelled
from vram.simulated.serialization import NO_BYTES, Storages
from vram.simulated.torch_build import check, fill_cuda_guard, made_on_the_cpu, release
from vram.simulated.trace import Held
from vram.torch_hooks.dispatch import composite, hooked, in_parts

_T = TypeVar("_T")
DEVICE = torch.device("cuda", 0)
TOKEN = 7  # what argmax and multinomial choose: no end of a sentence, in any tokenizer we know of
_TESTED = ((2, 11), (2, 13), (2, 14))
_aten = torch.ops.aten
_SET_DATA = torch.Tensor.data.__set__  # type: ignore[attr-defined]
_RECURRENT = {_VF.lstm, _VF.gru, _VF.rnn_tanh, _VF.rnn_relu}
_TO_NUMPY: set[Any] = {torch.Tensor.numpy, torch.Tensor.__array__}
_BY_ELEMENT: set[Any] = {torch.Tensor.apply_, torch.Tensor.map_, torch.Tensor.map2_}
# What hands out a tensor's own memory, or asks each of its elements: of a real one it is real.
_OF_REAL_MEMORY: set[Any] = _TO_NUMPY | _BY_ELEMENT
_OF_REAL_MEMORY |= {
    getattr(torch.Tensor, name)
    for name in ("__deepcopy__", "__dlpack__", "__format__", "__reduce_ex__", "__repr__", "share_memory_", "tolist")
}
_MASKED = {_aten.index.Tensor, _aten.masked_select.default}
_PACKED = _aten._pack_padded_sequence.default  # of recurrent networks, which are refused
_QUANTISED = {torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4}
_LIFTED = _aten.lift_fresh.default  # what `torch.tensor` has made: from here on it has no bytes
_ALIGNED = _aten._nested_tensor_from_mask_left_aligned.default
_VERSION = release()
_GROUPED = _aten._grouped_mm.default
_GROUPED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_LINEAR = _aten.linear.default
_RMS_NORM = _aten._fused_rms_norm.default
# What C++ says that reads a tensor's memory past every mode.
_WITHOUT_BYTES = ("its data is not allocated yet", "Cannot access data pointer of")
_SEEN_WHOLE: set[Any] = {torch.rms_norm, torch.nn.functional.rms_norm, torch.nn.functional.linear}


_inside: list[SimulatedCuda] = []  # the one that somebody is in


class SimulatedCuda:
    """One card. Inside `with`, tensors on `cuda:0` have no bytes, and PyTorch's figures of memory are the card's.

    Enter it as often as you like: what is alive stays so. Models must be built inside. Values are known where they
    decide (see `vram.simulated.known_values`). Where no room is left, `torch.OutOfMemoryError` says so in CUDA's words.

    Threads that are started inside are followed. Real tensors stay real where only their own memory is asked for or
    written. Not modelled: several streams, CUDA graphs, scratch memory of kernels beside cuBLAS's workspaces and what
    `vram.simulated.kernels` knows. Refused: recurrent networks, backward passes and forward-mode derivatives, quantised
    tensors, settings of the allocator, other cards than the one, its tensors outside. Compiled code and the fused path
    of nn.TransformerEncoder warn.
    """

    def __init__(
        self, card: Card | str, *, cublas_workspace: bool = True, token: int = TOKEN, device: torch.device = DEVICE
    ) -> None:
        """`cublas_workspace`: counted at the first matrix product. `token`: what generation chooses.

        `device`: whose tensors are followed; the CPU's, to compare with what a real run on it allocates.
        """
        check(MADE_OF_OTHERS)
        _warn_untested()
        self.card = find_card(card) if isinstance(card, str) else card
        refuse_environment(os.environ)
        self.allocator = CachingAllocator(self.card.total_bytes, self.card.context_bytes)
        self.device = device
        # If set, called with an operation's name and its result wherever a storage is taken: the tag of its block.
        self.describe: Callable[[str, Tensor], object] | None = None
        self._mode = _Mode(allow_non_fake_inputs=True)
        # Its tensors have it among their attributes, which a copy of a module copies.
        self._mode.__deepcopy__ = lambda _: self._mode  # type: ignore[attr-defined]
        self._shadows = Shadows(self._mode, token)
        # Whoever runs an operation, as fake tensors' mode is not for several threads. Finalizers may come in between.
        self._asking = threading.RLock()
        self._blocks: dict[int, tuple[int, Block]] = {}  # by storage address: bytes, block
        self._ends: dict[int, weakref.ref[Any]] = {}
        self._workspaces = {"cuBLAS", "cuBLASLt"} if cublas_workspace else set()  # still to be taken
        self._depth = 0
        self._modes = ExitStack()

    def __enter__(self) -> Self:
        if self._depth == 0:
            if (other := _inside[-1:]) and other != [self]:  # both would count the same bytes
                raise RuntimeError(
                    f"a simulation of {self.card.name} in one of {other[0].card.name}: there is one card at a time, so "
                    "leave the first before"
                )
            with ExitStack() as stack:
                _inside.append(self)
                stack.callback(_inside.remove, self)
                stack.enter_context(hooked(self))
                fill_cuda_guard()
                stack.enter_context(made_on_the_cpu())
                # First: entered on a card, fake tensors would try to initialise it.
                stack.enter_context(self._mode.opened())
                stack.enter_context(self._mode)
                storages = Storages(self._unknown, self._cloned, self._moved, self._taking_part)
                stack.enter_context(answering(self.card, self.allocator, self._mode, self._shadows, storages))
                stack.enter_context(_Follow(self))
                stack.enter_context(_Indexed(self._shadows))
                stack.enter_context(FusedAttention(self.card.compute_capability))
                self._modes = stack.pop_all()
        self._depth += 1
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._modes.close()

    def following(self) -> AbstractContextManager[object]:
        """In another thread, around every operation: its tensors are the card's too."""
        elsewhere: AbstractContextManager[object] = _Elsewhere(self)
        return elsewhere

    def within_thread(self) -> AbstractContextManager[object]:
        """Around all of another thread that starts inside: a device without an index is the card."""
        indexed: AbstractContextManager[object] = _Indexed(self._shadows, self.taking_a_turn)
        return indexed

    @contextmanager
    def taking_a_turn(self) -> Iterator[None]:
        """In another thread: one operation on the card. In one that outlives the simulation it is nobody's."""
        if self._depth == 0:
            yield
            return
        with self._asking, made_on_the_cpu(), self._mode, _Follow(self):
            yield

    def _cloned(self, storage: torch.UntypedStorage) -> torch.UntypedStorage | None:
        """Another storage on the card, of as many bytes; None for one that is not there."""
        if storage._cdata not in self._blocks:
            return None
        return self._unknown(storage.nbytes()).untyped_storage()

    def _moved(self, storage: torch.UntypedStorage, *, is_read: bool) -> Tensor:
        """The bytes of a real storage on the card; `is_read`: whether they are there already."""
        if not is_read:
            return self._unknown(storage.nbytes())
        with _disable_current_modes():
            held = torch.empty(0, dtype=torch.uint8).set_(storage)
        with self._taking_part():
            return held.to(self.device)

    def _unknown(self, n_bytes: int) -> Tensor:
        """So many bytes on the card, of which nobody knows what they hold."""
        with self._taking_part():
            made = torch.empty(n_bytes, dtype=torch.uint8, device=self.device)
            self._shadows.lose(made)
            return made

    def _taking_part(self) -> AbstractContextManager[object]:
        """As `taking_a_turn`, also where the modes are on already."""
        elsewhere = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is None
        return self.taking_a_turn() if elsewhere else nullcontext()

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage changed its size without an operation."""
        address, n_bytes = storage._cdata, storage.nbytes()
        known = self._blocks.get(address)
        if known is not None and known[0] != n_bytes:
            self._blocks[address] = n_bytes, self._take(n_bytes)
            self._give_back(known[1])

    def take_workspace(self, lt: bool = True) -> None:
        """cuBLAS takes its workspace now, and not at the first matrix product: no figure depends on who comes first.

        `lt`: that of cuBLASLt too, where it has one of its own.
        """
        setting = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        self._take_for("cuBLAS", workspace_bytes(self.card.compute_capability, _VERSION, setting))
        if lt:
            self._take_for("cuBLASLt", lt_workspace_bytes(_VERSION))

    def _take_for(self, library: str, n_bytes: int) -> None:
        if library in self._workspaces:
            self._workspaces.remove(library)  # it stays for good, as no tensor's
            self._take(n_bytes)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation: its result is followed, and its storage taken from the allocator."""
        with self._asking:
            return self._run(func, args, kwargs)

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        given = list(tensors((args, kwargs)))
        if self.device.type == "cuda" and func is not _LIFTED and _of_real_memory(func, given, args, kwargs):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func is _PACKED or _quantised(func, given, args, kwargs):
            raise unmodelled(func, args)
        if any(not isinstance(tensor, FakeTensor) for tensor in given):
            args, kwargs = self._shadows.faked(args), self._shadows.faked(kwargs)
        if func is _ALIGNED:
            return False  # of nn.TransformerEncoder's fused path, which is not taken
        if func in _MASKED:
            func, args = self._by_index(func, args)
        if func is _GROUPED and args[0].dtype == args[1].dtype in _GROUPED_DTYPES:
            result: Any = grouped_product(*args, **kwargs)
        elif func is _RMS_NORM:
            result = rms_norm(args[0], args[1])
        else:
            result = self._shadows.run(func, args, kwargs)
        on_card = self.device.type == "cuda"
        made = list(tensors(allocated(func, result, args) if on_card else result))
        on_card = on_card and any(tensor.device == self.device for tensor in (*given, *made))
        called = Call(func, args, kwargs, result, self.card, _VERSION, self._shadows.of)
        if on_card:
            self._run_meanwhile(preparation(called))
        for tensor in made:
            self._see(tensor, func)
        if on_card:
            _warn_of_others(func)
            self._hold_parts(func, args, result)
            held = self._run_meanwhile(scratch(called))
            if self._workspaces and is_product(func):
                self.take_workspace(lt=takes_lt(func, args, kwargs))
            del held
        return result

    def _run_meanwhile(self, steps: Steps) -> list[Any]:
        held: list[Any] = []
        for step in steps:
            if step is None:
                held.clear()
            else:
                held.append(self._run(*step))
        return held

    def _hold_parts(self, func: Any, args: Any, result: Any) -> None:
        found = parts(func, args, self.card.multiprocessors)
        if found is not None:
            law, length = found
            sizes = law.sizes_at(length)
            tag = self._tag(func, result[0]) if sizes or self.allocator.on_hold else None
            self._in_cuda_words(self.allocator.hold, sizes, Held(law, length, tag), tag)

    def _by_index(self, func: Any, args: Any) -> tuple[Any, Any]:
        """Boolean indexing with masks that are known, as a card does it: by where they are true."""
        if func is _aten.masked_select.default:
            shape = torch.broadcast_shapes(args[0].shape, args[1].shape) or (1,)  # type: ignore[no-untyped-call]
            mask = self._shadows.run(_aten.expand.default, (args[1], shape), {})
            args = self._shadows.run(_aten.expand.default, (args[0], shape), {}), [mask]
        indices: list[Tensor | None] = []
        for index in args[1]:
            if index is not None and index.dtype in (torch.bool, torch.uint8) and self._shadows.of(index) is not None:
                places = self.run(_aten.nonzero.default, (index,), {})
                indices.extend(self._shadows.run(_aten.select.int, (places, 1, dim), {}) for dim in range(index.dim()))
            else:
                indices.append(index)
        return _aten.index.Tensor, (args[0], indices, *args[2:])

    def _see(self, tensor: Tensor, func: Any) -> None:
        if tensor.device != self.device:
            if tensor.device.type == "cuda":  # in torch's words
                raise RuntimeError(f"CUDA error: invalid device ordinal: {tensor.device}, of one simulated card")
            return
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            return  # sparse: its parts are seen by themselves
        address, n_bytes = storage._cdata, storage.nbytes()
        known = self._blocks.get(address)
        if known is not None and known[0] == n_bytes:
            return
        tag = self._tag(func, tensor)
        block = self._take(n_bytes, tag)
        if known is None:
            self._ends[address] = weakref.ref(storage, lambda _: self._forget(address))
        else:  # resized in place: the new block is there before the old one goes
            self._give_back(known[1])
        self._blocks[address] = n_bytes, block

    def _tag(self, func: Any, tensor: Tensor) -> object:
        return self.describe(func._schema.name.replace("::", "."), tensor) if self.describe else None

    def _take(self, n_bytes: int, tag: object = None) -> Block:
        return self._in_cuda_words(self.allocator.malloc, n_bytes, tag=tag)

    @staticmethod
    def _in_cuda_words(asked: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        try:
            return asked(*args, **kwargs)
        except SimulatedOutOfMemory as error:
            message = str(error)
        raise torch.OutOfMemoryError(message)

    def _forget(self, address: int) -> None:
        self._ends.pop(address, None)
        known = self._blocks.pop(address, None)
        if known is not None:
            self._give_back(known[1])

    def _give_back(self, block: Block) -> None:
        with self._asking:
            self.allocator.free(block)


@functools.cache
def simulated_cuda(card: str) -> SimulatedCuda:
    """The one simulated device of that card in this process; made when it is first asked for."""
    cuda = SimulatedCuda(card)
    cuda.take_workspace()
    return cuda


class _Mode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """Fake tensors that are of use inside a simulation alone: nobody counts what they make elsewhere."""

    _open = False

    @contextmanager
    def opened(self) -> Iterator[None]:
        self._open = True
        try:
            yield
        finally:
            self._open = False

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError(NO_BYTES)  # a pickle of one of its tensors asks for it

    def __enter__(self) -> Self:
        if not self._open:  # a fake tensor enters its own, to run an operation where no mode is
            func = sys._getframe(1).f_locals.get("func", "an operation")
            raise RuntimeError(
                f"{func} at {line_here()} is of a tensor on a simulated card, outside the simulation, where nothing is "
                "counted: do it inside `with vram.on_device():` (or the `with SimulatedCuda(...)` that it was made in)"
            )
        return super().__enter__()


class _Follow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    supports_higher_order_operators = True

    def __init__(self, cuda: SimulatedCuda) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if isinstance(func, HigherOrderOperator):
            raise unmodelled(func, args)
        try:
            # What it is made of is what allocates; but of one there is a kernel on a card.
            on_card = self._cuda.device.type == "cuda"
            if composite(func) and not (func is _RMS_NORM and on_card and args[0].device.type == "cuda"):
                in_place = _InPlace() if func is _LINEAR and on_card else nullcontext()  # type: ignore[no-untyped-call]
                with self, in_place:
                    return in_parts(func, args, kwargs or {})
            if func in MADE_OF_OTHERS and on_card:
                with self:
                    return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **(kwargs or {}))
            return self._cuda.run(func, args, kwargs or {})
        except torch.OutOfMemoryError as error:
            del args, kwargs  # what was made until now ends here, as on a card: no frame of a traceback keeps it
            raise error.with_traceback(None)  # noqa: B904 (it is the same)


class _InPlace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, a bias is added in place, as where no mode looks on (aten/src/ATen/native/Linear.cpp)."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0].add_(args[1]) if func is _aten.add.Tensor else func(*args, **(kwargs or {}))


class _Elsewhere(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """In another thread. What it does with real tensors alone, as reading a file, it does for real."""

    def __init__(self, cuda: SimulatedCuda) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        there = device is not None and torch.device(device).type == "cuda"
        if there or any(isinstance(tensor, FakeTensor) for tensor in tensors((args, kwargs))):
            with self._cuda.taking_a_turn():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class _Indexed(TorchFunctionMode):
    """ "cuda" and 0 are cuda:0: a torch without CUDA would take the one for the meta device, in silence.

    `turn`, in other threads: entered where the card is asked for, as torch would else initialise it before it asks the
    modes of the thread.
    """

    def __init__(self, shadows: Shadows, turn: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        super().__init__()
        self._shadows, self._turn = shadows, turn

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            if args and type(args[0]) is int:  # of the accelerator, which a torch without CUDA has not
                return _cuda_device(*args)
            return _with_index(func(*args, **kwargs))
        if func is torch.Tensor.cuda:
            asked = kwargs.pop("device", None) if len(args) < 2 else args[1]
            func, args = torch.Tensor.to, (args[0], _cuda_device(asked), *args[2:])
        if func in _OF_REAL_MEMORY and all(map(is_real, asked_of := list(filter(_is_tensor, args)))):
            self._shadows.refuse_lost(asked_of, f"Tensor.{func.__name__}")
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func in _TO_NUMPY:
            return self._to_numpy(*args, **kwargs)
        if func is torch.Tensor.__dlpack__ and isinstance(args[0], FakeTensor):  # its own is an address of nothing
            held = self._shadows.held(args[0], "Tensor.__dlpack__", copied=args[0].device.type != "cpu")
            with _disable_current_modes():
                return held.__dlpack__(*args[1:], **kwargs)
        if func is torch.nn.functional.one_hot and args and whole_on_card(args[0]):
            return one_hot(*args, **kwargs)
        if func in _BY_ELEMENT and isinstance(args[0], FakeTensor) and args[0].device.type == "cpu":
            values = [self._shadows.held(each, f"Tensor.{func.__name__}", copied=False) for each in tensors(args)]
            with _disable_current_modes():
                func(*values, *args[len(values) :])
            return args[0]
        if func is torch.Tensor.__format__ and args[0].dim() == 0:
            return format(args[0].item(), args[1])
        if func is torch.Tensor.share_memory_ and isinstance(args[0], FakeTensor):
            return args[0]  # nobody else sees it, on the card or not
        if func is torch.Tensor.pin_memory:
            return args[0].clone()  # in main memory, where nothing is counted
        if func in _RECURRENT and args[0].device.type == "cuda":
            raise NotImplementedError(f"simulated CUDA does not model cuDNN's {func.__name__}: measure on a GPU")
        if func is torch.Tensor.__deepcopy__ and args[0].is_leaf and args[0].layout is torch.strided:
            return self._deepcopied(*args, **kwargs)
        if func == _SET_DATA:
            self._shadows.replace(*args)
        if func in (torch.tensor, torch.as_tensor) and args and isinstance(args[0], list | tuple):
            args = tree_map_only(Tensor, lambda each: each.item() if each.dim() == 0 else each, args[0]), *args[1:]
        if type(asked := kwargs.get("device")) is int or asked == "cuda":
            kwargs["device"] = _cuda_device(asked)
        if func is torch.Tensor.to and len(args) > 1 and type(args[1]) is int:
            args = (args[0], _cuda_device(args[1]), *args[2:])
        args = tuple(DEVICE if isinstance(value, str) and value == "cuda" else value for value in args)
        args, kwargs = tree_map_only(torch.device, _with_index, (args, kwargs))
        try:
            with self._turn() if any(map(_names_the_card, (*args[1:], kwargs.get("device")))) else nullcontext():
                if func in _SEEN_WHOLE and not torch.is_grad_enabled():
                    with torch._C._AutoDispatchBelowAutograd():  # which would take them apart unseen
                        return func(*args, **kwargs)
                return func(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            del args, kwargs
            raise error.with_traceback(None)  # noqa: B904 (it is the same)
        except RuntimeError as error:
            if any(words in str(error) for words in _WITHOUT_BYTES):
                raise unmodelled(torch.overrides.resolve_name(func), args) from error
            raise

    def _deepcopied(self, tensor: Tensor, memo: dict[int, Any]) -> Tensor:
        """As torch's own of what has an address: all of the storage, once in a memo; of a parameter what it shows."""
        if id(tensor) in memo:
            known: Tensor = memo[id(tensor)]
            return known
        with torch.no_grad():
            if isinstance(tensor, torch.nn.Parameter):
                new: Tensor = torch.nn.Parameter(
                    tensor.detach().clone(memory_format=torch.preserve_format), tensor.requires_grad
                )
            else:
                storage = copy.deepcopy(tensor.untyped_storage(), memo)
                new = tensor.new_empty([]).set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
                self._shadows.copied(tensor, new, memo)
                new = new.conj_physical() if tensor.is_conj() else new
                new = new.neg() if tensor.is_neg() else new
                new.requires_grad_(tensor.requires_grad)
                if tensor.grad is not None:
                    new.grad = copy.deepcopy(tensor.grad, memo)
                own = {name: value for name, value in vars(tensor).items() if name not in vars(new)}
                vars(new).update(copy.deepcopy(own, memo))
        memo[id(tensor)] = new
        return new

    def _to_numpy(self, tensor: Tensor, dtype: Any = None, *, force: bool = False) -> Any:
        if tensor.device.type == "cuda" and not force:  # in torch's words
            raise TypeError(
                f"can't convert {tensor.device} device type tensor to numpy. "
                "Use Tensor.cpu() to copy the tensor to host memory first."
            )
        with _disable_current_modes():
            array = self._shadows.held(tensor, "Tensor.numpy", copied=tensor.device.type != "cpu").numpy(force=True)
        return array if dtype is None or type(dtype) is bool else array.astype(dtype)


def _of_real_memory(func: Any, given: Sequence[Tensor], args: Any, kwargs: Any) -> bool:
    """Whether an operation looks at, or writes into, the memory of real tensors alone, which stays real by it."""
    if not given or not all(map(is_real, given)):
        return False
    storages = [each for each in args if isinstance(each, torch.UntypedStorage)]
    return aliases(func) and "device" not in kwargs and all(each.device.type == "cpu" for each in storages)


def _quantised(func: Any, given: Sequence[Tensor], args: Any, kwargs: Any) -> bool:
    """Whether it is of quantised tensors, whose bytes fake ones have not: theirs are of the dtype before."""
    if any(tensor.dtype in _QUANTISED for tensor in given) or kwargs.get("dtype") in _QUANTISED:
        return True
    return _quantises(func)


@functools.cache
def _quantises(func: Any) -> bool:
    name = func._schema.name.removeprefix("aten::")
    return name.startswith(("quantize_per_", "_make_per_")) or "_affine_quantized" in name


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _names_the_card(value: Any) -> bool:
    device = value.device if isinstance(value, Tensor) else value
    return (isinstance(device, torch.device) and device.type == "cuda") or (
        type(device) is str and device[:5] == "cuda:"
    )


def _cuda_device(asked: Any) -> torch.device:
    """What `cuda(asked)`, `to(asked)` of a number and `device=asked` mean."""
    if asked is None:
        return DEVICE
    return torch.device("cuda", asked) if type(asked) is int else _with_index(torch.device(asked))


def _with_index(device: torch.device) -> torch.device:
    return DEVICE if device.type == "cuda" and device.index is None else device


@functools.cache
def _is_others(func: Any) -> bool:
    return func.namespace not in ("aten", "prims", "prim", "profiler")


def _warn_of_others(func: Any) -> None:
    """Of an operation that is not torch's: fake tensors run what says how its result looks, and not the kernel."""
    if _is_others(func):
        warnings.warn(
            f"simulated CUDA counts what {func} at {line_here()} returns, not what its kernel takes meanwhile: call "
            "the function that it is made of, or measure on a GPU",
            stacklevel=5,
        )


@functools.cache
def _warn_untested() -> None:
    if release() not in _TESTED:
        tested = ", ".join(f"{major}.{minor}" for major, minor in _TESTED)
        warnings.warn(
            f"simulated CUDA is tested with torch {tested}, not {torch.__version__}: unchecked are fake "
            "tensors, the dispatch of composite operations and the allocator's rules",
            stacklevel=4,
        )
