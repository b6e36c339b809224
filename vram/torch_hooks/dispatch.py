"""Following operations in torch's dispatch, and those that others are made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vram.torch_hooks.storages import storages_of, untyped_storage_of

# Composite, but of a contiguous tensor they make a view, or their result and nothing else: most of a model's work.
_DIRECT = {f"aten::{name}" for name in ("contiguous", "flatten", "is_nonzero", "item", "linear", "reshape", "to")}


def _dynamo() -> tuple[Callable[[], Any], Callable[[Any], None]] | None:
    """Functions that say what compiles in this thread (None: nothing does), and have Dynamo leave a code's own frame
    alone; None where this PyTorch has them elsewhere."""
    frames: Any = torch._C._dynamo.eval_frame
    try:
        skip = frames._FrameExecStrategy(frames._FrameAction.SKIP, frames._FrameAction.DEFAULT)
        compiling, set_strategy = frames.get_eval_frame_callback, frames.set_code_exec_strategy
    except AttributeError:
        return None
    return compiling, lambda code: set_strategy(code, skip)


_DYNAMO = _dynamo()  # None: PyTorch's own way with modes stays, and imports Dynamo


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that is never compiled, and imports no compiler where nobody compiles.

    PyTorch keeps Dynamo out of every mode's `__torch_dispatch__` too, but by importing it at the first operation, which
    takes as long as importing torch, and by a detour at every other one.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        own = cls.__dict__.get("__torch_dispatch__") if _DYNAMO else None
        if own is not None:
            del cls.__torch_dispatch__  # else it would be wrapped, see above
        super().__init_subclass__(**kwargs)  # type: ignore[no-untyped-call]
        if own is not None and _DYNAMO:
            cls.__torch_dispatch__ = _uncompiled(own, *_DYNAMO)  # type: ignore[method-assign]


def _uncompiled(
    dispatch: Callable[..., Any], compiling: Callable[[], Any], skip: Callable[[Any], None]
) -> Callable[..., Any]:
    """A `__torch_dispatch__` that Dynamo leaves alone."""
    disabled: list[Callable[..., Any]] = []

    def run(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if compiling() is None:
            return dispatch(self, func, types, args, kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(dispatch))  # type: ignore[no-untyped-call]
        return disabled[0](self, func, types, args, kwargs)

    skip(run.__code__)
    return functools.wraps(dispatch)(run)


class LeavingSubclasses(DispatchMode):
    """A mode that leaves an operation to the code that a subclass of Tensor has for it, and sees what that runs."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._left: Any = None  # the operation that is left to a subclass

    def is_left(self, func: Any) -> bool:
        """Whether it is the operation that is being left; once: return NotImplemented then."""
        left = func is self._left
        if left:
            self._left = None
        return left

    def by_subclass(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of the subclass's code, which is followed too."""
        self._left = func
        try:
            with self:
                return func(*args, **kwargs)
        finally:
            self._left = None


class Following(LeavingSubclasses):
    """Shows the tensors of every operation of its thread, and of those it is made of, inputs before results.

    What runs here runs at every operation: it is written for speed.
    """

    def __init__(
        self,
        seen: Callable[[Sequence[torch.UntypedStorage], torch.Tensor, Any, bool], None],
        sizes: Mapping[int, int],
        ran: Callable[[Any, Any, Any, Any], None] | None = None,
    ) -> None:
        """`seen` gets storages that have not the bytes that `sizes` says of their addresses, the tensor whose they are,
        the operation, and whether the tensor is among its results; `ran` an operation that is no other's whole: itself,
        its arguments, their keywords and the result."""
        super().__init__()
        self._seen, self._sizes, self._ran = seen, sizes, ran

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._left is not None and self.is_left(func):
            return NotImplemented
        _, is_composite, is_direct, is_view, _ = _KINDS.get(id(func)) or _kind_of(func)
        left = bool(types) and any(map(dispatches, types))
        if is_composite and not left and not (is_direct and args and _is_plain(args[0])):
            with self:
                return in_parts(func, args, kwargs or {})
        # Inputs first: one that is new to us was made before, or elsewhere, and is no work of this operation's.
        self._show(args, func, False)
        if kwargs:
            self._show(kwargs.values(), func, False)
            result = func(*args, **kwargs) if not left else self.by_subclass(func, args, kwargs)
        else:
            result = func(*args) if not left else self.by_subclass(func, args, {})
        if not is_view or left or args[0].layout is not torch.strided:
            self._show((result,), func, True)
        if self._ran is not None and not left:
            self._ran(func, args, kwargs, result)
        return result

    def _show(self, values: Iterable[Any], func: Any, made: bool) -> None:
        for value in values:
            kind = type(value)
            if kind is _TENSOR or kind is _PARAMETER:
                try:
                    storage = untyped_storage_of(value)
                    known = self._sizes.get(storage._cdata) == storage.nbytes()
                except (NotImplementedError, RuntimeError):  # it has several, or shows none
                    self._show_parts(value, func, made)
                else:
                    if not known:
                        self._seen((storage,), value, func, made)
            elif kind in NO_TENSORS:
                pass
            elif isinstance(value, (list, tuple)):  # in half the time of list | tuple
                self._show(value, func, made)
            elif isinstance(value, dict):
                self._show(value.values(), func, made)
            elif isinstance(value, torch.Tensor):
                self._show_parts(value, func, made)

    def _show_parts(self, tensor: torch.Tensor, func: Any, made: bool) -> None:
        new = [each for each in storages_of(tensor) if self._sizes.get(each._cdata) != each.nbytes()]
        if new:
            self._seen(new, tensor, func, made)


# Types of most arguments that are no tensors.
NO_TENSORS = frozenset(
    (bool, float, int, str, type(None), torch.device, torch.dtype, torch.layout, torch.memory_format)
)
# Operations whose results have the storage of their first argument, if that is strided.
VIEWS = frozenset(
    f"aten::{name}"
    for name in (
        *("_unsafe_view", "alias", "detach", "diagonal", "expand", "permute", "select", "slice", "split", "squeeze"),
        *("t", "transpose", "unbind", "unsqueeze", "view"),
    )
)
_TENSOR, _PARAMETER = torch.Tensor, torch.nn.Parameter
# Facts of each operation by its id, as its own hash is Python code: the operation, so that no other gets that id;
# whether it is `composite`; whether it is of _DIRECT; whether it is one of VIEWS; its name.
_KINDS: dict[int, tuple[Any, bool, bool, bool, str]] = {}


def _kind_of(func: Any) -> tuple[Any, bool, bool, bool, str]:
    name: str = func._schema.name if hasattr(func, "_schema") else func.name()  # one of higher order has no schema
    kind = _KINDS[id(func)] = func, composite(func), name in _DIRECT, name in VIEWS, name.replace("::", ".")
    return kind


def operation_name(func: Any) -> str:
    """ "aten.add" of an operation."""
    return (_KINDS.get(id(func)) or _kind_of(func))[4]


def made_by(func: Any, made: bool) -> str:
    """Words for the operation that made a storage, or that used it first."""
    op = operation_name(func)
    if made:
        return op
    # torch.tensor and its kin make a tensor where no mode sees it, then lift it.
    return "tensor from data" if op == "aten.lift_fresh" else f"first used by {op}"


@functools.cache
def composite(func: Any) -> bool:
    """Whether an operation is made of others on every device: `silu_backward`, say, has kernels for a CPU and a card.

    Under inference mode it reaches a dispatch mode whole, and hides what its parts allocate, unless it is taken apart
    (`in_parts`).
    """
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return (
        func.namespace == "aten"
        and bool(has_kernel(func.name(), "CompositeImplicitAutograd"))
        and not has_kernel(func.name(), "CPU")
    )


def in_parts(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A `composite` operation as its C++ composes it, each part dispatched by itself.

    `func.decompose` would rather take a decomposition written in Python, which allocates otherwise.
    """
    return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)


def _is_plain(value: Any) -> bool:
    """Whether it is a contiguous tensor."""
    return isinstance(value, torch.Tensor) and value.layout is torch.strided and value.is_contiguous()


@functools.lru_cache(maxsize=256)
def dispatches(kind: type[torch.Tensor]) -> bool:
    """Whether a subclass has code of its own for every operation. PyTorch's fake tensors bring a mode for that."""
    own = kind.__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    return own and not kind.__module__.startswith("torch._subclasses.")
