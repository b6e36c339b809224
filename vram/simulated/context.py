"""A simulated CUDA device: fake tensors, whose storages are followed into a model of the caching allocator."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from vram.cards import Card, find_card
from vram.frames import line_here
from vram.simulated import operations
from vram.simulated.allocator import Block, CachingAllocator, SimulatedOutOfMemory
from vram.simulated.allocator_settings import environment_settings
from vram.simulated.backward import Engine
from vram.simulated.cuda_api import cuda_places, settings_by_call
from vram.simulated.device import DEVICE, other_card
from vram.simulated.fake_results import check_results
from vram.simulated.functions import CardFunctions
from vram.simulated.kernels.attention import FusedAttention, parts
from vram.simulated.kernels.call import Steps
from vram.simulated.kernels.composite import COMPOSED, OF_A_CARD, ONE_KERNEL, grouped_product
from vram.simulated.kernels.cublas import by_triton, is_product, lt_workspace_bytes, takes_lt, workspace_bytes
from vram.simulated.kernels.device_checks import check_devices
from vram.simulated.kernels.layouts import LAID_OUT
from vram.simulated.kernels.scratch import Call, allocated, around, made_last, preparation, scratch, takes_result_alone
from vram.simulated.kernels.uncounted import bound, operand_bytes, whose_memory
from vram.simulated.known_values import KnownValues
from vram.simulated.masks import BY_MASK, by_places
from vram.simulated.modes import CardMode, Elsewhere, Follow
from vram.simulated.operations import is_quantised, tensors, touches_real_memory_alone, unmodelled, warn_of_custom
from vram.simulated.remarks import Remarks, Uncounted
from vram.simulated.replacements import replaced
from vram.simulated.serialization import Storages, file_places
from vram.simulated.streams import Streams
from vram.simulated.torch_api import torch_places
from vram.simulated.torch_build import check, fill_cuda_guard, leave_whole, made_on_the_cpu, release, warn_untested
from vram.simulated.trace import Scratch
from vram.torch_hooks.storages import LivingStorages
from vram.torch_hooks.watchers import hooked

__all__ = ["DEVICE", "TOKEN", "SimulatedCuda", "simulated_cuda"]

_T = TypeVar("_T")
TOKEN = 7  # what argmax and multinomial choose: no end of a sentence, in any tokenizer we know of
_aten = torch.ops.aten
_PACKED = _aten._pack_padded_sequence.default  # of recurrent networks, which are refused
_LIFTED = _aten.lift_fresh.default  # what `torch.tensor` has made: from here on it has no bytes
_ALIGNED = _aten._nested_tensor_from_mask_left_aligned.default
_VERSION = release()
_GROUPED = _aten._grouped_mm.default
_GROUPED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_FAKES = frozenset((FakeTensor,))
_inside: list[SimulatedCuda] = []  # the one that is entered


class SimulatedCuda:
    """One card. Inside `with`, tensors on `cuda:0` have no bytes, and PyTorch's figures of memory are the card's.

    Enter it as often as you like: what is alive stays so. Models must be built inside. Values are known where they
    decide (see `vram.simulated.known_values`). Where no room is left, `torch.OutOfMemoryError` says so in CUDA's words.

    Threads that are started inside are followed. Real tensors stay real where only their own memory is read or
    written. Not modelled: CUDA graphs, scratch memory of kernels beside cuBLAS's workspaces and what
    `vram.simulated.kernels` knows. Refused: recurrent networks, forward-mode derivatives, quantised tensors,
    some settings of the allocator, other cards than the one, its tensors outside. Compiled code and the fused
    path of nn.TransformerEncoder warn.
    """

    def __init__(
        self, card: Card | str, *, cublas_workspace: bool = True, token: int = TOKEN, device: torch.device = DEVICE
    ) -> None:
        """`cublas_workspace`: counted at the first matrix product. `token`: what generation chooses.

        `device`: whose tensors are followed; the CPU's, to compare with what a real run on it allocates.
        """
        check(COMPOSED)
        check_results()
        warn_untested()
        self.card = find_card(card) if isinstance(card, str) else card
        settings = settings_by_call(environment_settings(os.environ))
        self.allocator = CachingAllocator(self.card.total_bytes, self.card.context_bytes, settings=settings)
        self.device = device
        # If set, called with an operation's name and its result wherever a storage is taken: the tag of its block.
        self.describe: Callable[[str, Tensor], object] | None = None
        self.in_kernel = False  # whether what is taken is scratch memory of an operation's kernel
        self._mode = CardMode()
        self._known_values = KnownValues(self._mode, token, self._assume)
        self._remarks: list[Remarks] = []
        # Held during an operation, as fake tensors' mode is not for several threads. Finalizers may come in between.
        self._running = threading.RLock()
        self._living = LivingStorages[Block](lambda _, block: self._give_back(block))
        self.streams = Streams()
        self._has_workspaces = cublas_workspace
        # Those that are taken: by library, stream, and whether it is autograd's thread that has the handle.
        self._workspaces: dict[tuple[str, int, bool], Block] = {}
        self._depth = 0
        self.engine = Engine(self)
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
                leave_whole(ONE_KERNEL)
                stack.enter_context(made_on_the_cpu())
                # First: entered on a card, fake tensors would try to initialise it.
                stack.enter_context(self._mode.opened())
                stack.enter_context(self._mode)
                storages = Storages(self._unknown, self._cloned, self._moved, self._taking_part)
                places = cuda_places(self.card, self.allocator) | torch_places(self._mode, self._known_values)
                places |= self.streams.places(self._use_by_stream)
                stack.enter_context(replaced(places | file_places(storages) | self.engine.places()))
                stack.enter_context(Follow(self))
                stack.enter_context(CardFunctions(self._known_values))
                stack.enter_context(FusedAttention(self.card.compute_capability))
                self._modes = stack.pop_all()
        self._depth += 1
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._modes.close()

    @contextmanager
    def remarking(self) -> Iterator[Remarks]:
        """Remarks on figures that are made inside the block."""
        remarks = Remarks()
        self._remarks.append(remarks)
        try:
            yield remarks
        finally:
            self._remarks.remove(remarks)

    def _assume(self, assumption: str, line: str) -> None:
        for remarks in self._remarks:
            remarks.assume(assumption, line)

    def following(self) -> AbstractContextManager[object]:
        """In another thread, around every operation: its tensors are the card's too."""
        elsewhere: AbstractContextManager[object] = Elsewhere(self)
        return elsewhere

    def within_thread(self) -> AbstractContextManager[object]:
        """Around all of another thread that starts inside: a device without an index is the card."""
        functions: AbstractContextManager[object] = CardFunctions(self._known_values, self.taking_a_turn)
        return functions

    @contextmanager
    def taking_a_turn(self) -> Iterator[None]:
        """In another thread: one operation on the card. In one that outlives the simulation it is nobody's."""
        if self._depth == 0:
            yield
            return
        with self._running, made_on_the_cpu(), self._mode, Follow(self):
            yield

    def _cloned(self, storage: torch.UntypedStorage) -> torch.UntypedStorage | None:
        """Another storage on the card, of as many bytes; None for one that is not there."""
        if storage not in self._living:
            return None
        return self._unknown(storage.nbytes()).untyped_storage()

    def _moved(self, storage: torch.UntypedStorage, *, is_read: bool) -> Tensor:
        """The bytes of a real storage on the card; `is_read`: whether they are there already."""
        if not is_read:
            return self._unknown(storage.nbytes())
        with _disable_current_modes():
            real = torch.empty(0, dtype=torch.uint8).set_(storage)
        with self._taking_part():
            return real.to(self.device)

    def _unknown(self, n_bytes: int) -> Tensor:
        """So many bytes on the card, of which nobody knows what they hold."""
        with self._taking_part():
            made = torch.empty(n_bytes, dtype=torch.uint8, device=self.device)
            self._known_values.forget(made)
            return made

    def _taking_part(self) -> AbstractContextManager[object]:
        """As `taking_a_turn`, also where the modes are on already."""
        elsewhere = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is None
        return self.taking_a_turn() if elsewhere else nullcontext()

    def resized(self, storage: torch.UntypedStorage) -> None:
        """A storage changed its size without an operation."""
        if storage in self._living and self._living.changed(storage):
            self._put(storage, self._take(storage.nbytes()))

    def block_of(self, storage: torch.UntypedStorage) -> Block | None:
        """The block of a living storage; None where it is not on the card."""
        return self._living.get(storage)

    def place(self, tensor: Tensor, block: Block) -> None:
        """Let a tensor that no operation has made be on the card, in that block."""
        self._living.put(tensor.untyped_storage(), block)

    def knows(self, tensor: Tensor) -> bool:
        """Whether a tensor's value is known."""
        return self._known_values.of(tensor) is not None

    def take_workspace(self, lt: bool = True) -> None:
        """Take cuBLAS's workspace of the current stream before the first product there; `lt`: cuBLASLt's too."""
        libraries = ("cuBLAS", "cuBLASLt")[: 1 + lt] if self._has_workspaces else ()
        for library in libraries:
            if (workspace := (library, self.streams.current.stream_id, self.engine.runs)) not in self._workspaces:
                self._workspaces[workspace] = self._take(self._workspace_bytes(library))

    def clear_workspaces(self) -> None:
        """Give back the workspaces of autograd's thread, and of all streams but the default one."""
        for library, stream, in_backward in list(self._workspaces):
            if stream or in_backward:
                self._give_back(self._workspaces.pop((library, stream, in_backward)))

    def _workspace_bytes(self, library: str) -> int:
        if library == "cuBLASLt":
            return lt_workspace_bytes(_VERSION)
        setting = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
        return workspace_bytes(self.card.compute_capability, _VERSION, setting)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation: its result is followed, and its storage taken from the allocator."""
        with self._running:
            return self._run(func, args, kwargs)

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        operands = tensors((args, kwargs))
        self.streams.note_graph(operands)
        if (
            self.device.type == "cuda"
            and func is not _LIFTED
            and touches_real_memory_alone(func, operands, args, kwargs)
        ):
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func is _PACKED or is_quantised(func, operands, kwargs):
            raise unmodelled(func, args)
        if len(operands) > 1 and self.device.type == "cuda":
            check_devices(func, operands)
        fakes: list[Tensor] | None = operands
        if not _FAKES.issuperset(map(type, operands)) and not all(isinstance(each, FakeTensor) for each in operands):
            args, kwargs, fakes = self._known_values.faked(args), self._known_values.faked(kwargs), None
        if func is _ALIGNED:
            return False  # of nn.TransformerEncoder's fused path, which is not taken
        if func in BY_MASK:
            func, args, fakes = *by_places(func, args, self._known_values, self.run), None
        if func is _GROUPED and args[0].dtype == args[1].dtype in _GROUPED_DTYPES:
            result: Any = grouped_product(*args, **kwargs)
        elif func in OF_A_CARD:
            result = OF_A_CARD[func](*args)
        elif func in ONE_KERNEL:
            result = self._known_values.run(_aten.mul.Tensor, args, kwargs)
        else:
            result = self._known_values.run(func, args, kwargs, fakes)
        if func in LAID_OUT and self.device.type == "cuda":
            result = self._known_values.passed_on(result, LAID_OUT[func](args, result))
        if takes_result_alone(func):
            for tensor in tensors(result):
                self._see(tensor, func)
        else:
            self._count(Call(func, args, kwargs, result, self.card, _VERSION, self._known_values.of), operands)
        return result

    def _count(self, call: Call, operands: list[Tensor]) -> None:
        """Take what an operation allocates: before its result, the result, and what the kernel needs meanwhile."""
        func, args, kwargs, result = call[:4]
        on_card = self.device.type == "cuda"
        made = tensors(allocated(func, result, args) if on_card else result)
        on_card = on_card and any(tensor.device == self.device for tensor in (*operands, *made))
        if on_card:
            around_result = self._run_besides(around(call))
            self._run_besides(preparation(call))
        last = made_last(call) if on_card else None
        for tensor in made:
            if tensor is last:
                around_result.clear()
            self._see(tensor, func)
        if on_card:
            warn_of_custom(func)
            self._take_parts(func, args, result)
            meanwhile = self._run_besides(scratch(call))
            if self._has_workspaces and is_product(func) and not by_triton(func, args, _VERSION):
                self.take_workspace(lt=takes_lt(func, args, kwargs))
            self._leave_out(call)
            del meanwhile, around_result

    def _leave_out(self, call: Call) -> None:
        """Note an operation whose kernel takes memory that is not counted."""
        if self._remarks and (whose := whose_memory(call)):
            alive_bytes = self.allocator.requested_bytes
            operation = Uncounted(whose, line_here(), alive_bytes, operand_bytes(call), *bound(whose))
            for remarks in self._remarks:
                remarks.leave_out(operation)

    def _run_besides(self, steps: Steps) -> list[Any]:
        """Run what a kernel runs besides; return what is alive at its end."""
        alive: list[Any] = []
        outer, self.in_kernel = self.in_kernel, True
        try:
            for step in steps:
                if step is None:
                    alive.clear()
                elif isinstance(step, int):
                    del alive[step]
                else:
                    alive.append(self._run(*step))
        finally:
            self.in_kernel = outer
        return alive

    def _take_parts(self, func: Any, args: Any, result: Any) -> None:
        """Take what flash attention allocates where it works on parts of the keys."""
        split = parts(func, args, self.card.multiprocessors)
        if split is not None:
            rule, length = split
            sizes = rule.sizes_at(length)
            tag = self._tag(func, result[0]) if sizes or self.allocator.on_scratch else None
            stream = self.streams.current.stream_id
            self._in_cuda_words(self.allocator.take_scratch, sizes, Scratch(rule, length, tag, stream), tag, stream)

    def _see(self, tensor: Tensor, func: Any) -> None:
        if tensor.device != self.device:
            if tensor.device.type == "cuda":
                raise other_card(tensor.device)
            return
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):
            operations.check_sparse(func, tensor)
            return
        if self._living.changed(storage):
            self._put(storage, self._take(storage.nbytes(), self._tag(func, tensor)))

    def _put(self, storage: torch.UntypedStorage, block: Block) -> None:
        before = self._living.put(storage, block)
        if before is not None:  # resized in place: the new block is there before the old one goes
            self._give_back(before[1])

    def _tag(self, func: Any, tensor: Tensor) -> object:
        return self.describe(func._schema.name.replace("::", "."), tensor) if self.describe else None

    def _take(self, n_bytes: int, tag: object = None) -> Block:
        return self._in_cuda_words(self.allocator.malloc, n_bytes, self.streams.current.stream_id, tag)

    def _use_by_stream(self, tensor: Tensor, stream: int) -> None:
        """Let a stream use a tensor's storage: freed, its block waits for the next request."""
        with self._running:
            block = self._living.get(tensor.untyped_storage())
            if block is not None:
                self.allocator.record_stream(block, stream)

    @staticmethod
    def _in_cuda_words(take: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
        try:
            return take(*args, **kwargs)
        except SimulatedOutOfMemory as error:
            message = str(error)
        raise torch.OutOfMemoryError(message)

    def _give_back(self, block: Block) -> None:
        with self._running:
            self.allocator.free(block)


@functools.cache
def simulated_cuda(card: str) -> SimulatedCuda:
    """The one simulated device of that card in this process; made at the first call."""
    cuda = SimulatedCuda(card)
    cuda.take_workspace()
    return cuda
