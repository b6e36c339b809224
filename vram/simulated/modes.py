"""Dispatch modes of a simulation: fake tensors, and what follows each operation on them in this thread and others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, Self

import torch
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from vram.frames import line_here
from vram.simulated.backward import Engine
from vram.simulated.fake_results import MISSING, FakeResults
from vram.simulated.kernels.composite import COMPOSED, RMS_NORM
from vram.simulated.operations import tensors, unmodelled
from vram.simulated.serialization import NO_BYTES
from vram.simulated.torch_build import release
from vram.torch_hooks.dispatch import DispatchMode, LeavingSubclasses, composite, dispatches, in_parts

_aten = torch.ops.aten
_LINEAR = _aten.linear.default
IS_CLOSE = _aten.isclose.default
_DEVICE_OF = torch.ops.prim.device.default


class Simulation(Protocol):
    """A simulated card, as the modes use it."""

    device: torch.device
    engine: Engine

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operation."""
        ...

    def taking_a_turn(self) -> AbstractContextManager[object]:
        """Entered around each operation of another thread."""
        ...


class CardMode(DispatchMode, FakeTensorMode):
    """Fake tensors that work inside their simulation only: nobody counts what they make elsewhere."""

    _open = False

    def __init__(self) -> None:
        FakeTensorMode.__init__(self, allow_non_fake_inputs=True)
        self._results = FakeResults(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.cache_enabled and (result := self._results.run(func, args, kwargs)) is not MISSING:
            return result
        return FakeTensorMode.__torch_dispatch__(self, func, types, args, kwargs)

    def repeated(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation that came before, without a way through C++.

        MISSING where it must be run, or where another mode than this one is to see it.
        """
        if torch._C._len_torch_dispatch_stack() != 1 or torch._C._get_dispatch_mode(self._mode_key) is not self:
            return MISSING
        return self._results.made(func, args, kwargs) if self.cache_enabled else MISSING

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Allow operations inside the block."""
        self._open = True
        try:
            yield
        finally:
            self._open = False

    def __deepcopy__(self, memo: object) -> Self:
        """Itself: its tensors have it among their attributes, which a copy of a module copies."""
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError(NO_BYTES)  # a pickle of one of its tensors comes here

    def __enter__(self) -> Self:
        if not self._open:  # a fake tensor enters its own mode to run an operation where no mode is
            func = sys._getframe(1).f_locals.get("func", "an operation")
            raise RuntimeError(
                f"{func} at {line_here()} is of a tensor on a simulated card, outside the simulation, where nothing is "
                "counted: do it inside `with vram.on_device():` (or the `with SimulatedCuda(...)` that it was made in)"
            )
        return super().__enter__()


class Follow(LeavingSubclasses):
    """Inside, every operation runs on the simulated card, taken apart where its parts allocate."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()
        self._simulation = simulation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.is_left(func):
            return NotImplemented
        engine = self._simulation.engine
        if engine.runs and engine.calls():
            kwargs = dict(kwargs or {})
            if (result := engine.dispatch(func, args, kwargs)) is not NotImplemented:
                return result
        if func is _DEVICE_OF and type(args[0]) is FakeTensor:  # C++ code asks very often
            return args[0].fake_device
        if any(map(dispatches, types)):  # its parts are what is on the card
            return self.by_subclass(func, args, kwargs or {})
        if isinstance(func, HigherOrderOperator):
            raise unmodelled(func, args)
        try:
            # The parts of a composite operation are what allocates; but a card has a kernel for one of them.
            on_card = self._simulation.device.type == "cuda"
            if composite(func) and not (func is RMS_NORM and on_card and args[0].device.type == "cuda"):
                with self, joining_in_place(func, args) if on_card else nullcontext():
                    return in_parts(func, args, kwargs or {})
            if func in COMPOSED and on_card:
                with self:
                    return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **(kwargs or {}))
            return self._simulation.run(func, args, kwargs or {})
        except torch.OutOfMemoryError as error:
            del args, kwargs  # what was made until now ends here, as on a card: no frame of a traceback keeps it
            raise error.with_traceback(None)  # noqa: B904 (it is the same)


def joining_in_place(func: Any, args: Any) -> AbstractContextManager[object]:
    """Entered around an operation that C++ takes apart: what it writes in place on a card, but not for fake tensors.

    A bias is added to the product (aten/src/ATen/native/Linear.cpp). Of the masks of two tensors, which say where each
    is not a number, the second goes into the first where both tensors are alike (`isclose` in TensorCompare.cpp); in a
    torch before 2.13, where it fits.
    """
    if func is _LINEAR and len(args) > 2:
        return _InPlace(_aten.add.Tensor, _aten.add_.Tensor)
    if func is IS_CLOSE:
        first, second = (each.shape for each in args[:2])
        broadcast = torch.broadcast_shapes(first, second)  # type: ignore[no-untyped-call]
        if first == (second if release() >= (2, 13) else broadcast):
            return _InPlace(_aten.bitwise_and.Tensor, _aten.bitwise_and_.Tensor)
    return nullcontext()


class _InPlace(DispatchMode):
    """Inside, the result of one operation is written into its first operand."""

    def __init__(self, func: Any, in_place: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._func, self._in_place = func, in_place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self._in_place if func is self._func else func)(*args, **(kwargs or {}))


class Elsewhere(DispatchMode):
    """In another thread. Operations on real tensors alone, as in reading a file, are real."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._simulation = simulation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        there = device is not None and torch.device(device).type == "cuda"
        if there or any(isinstance(tensor, FakeTensor) for tensor in tensors((args, kwargs))):
            with self._simulation.taking_a_turn():
                return func(*args, **kwargs)
        return func(*args, **kwargs)
