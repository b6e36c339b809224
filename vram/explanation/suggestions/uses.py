"""Follows what a traced run does with each storage: who made it, what reads it, and where it is let go of."""

from __future__ import annotations

import dis
import functools
import gc
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import torch
import torch.utils.dlpack

from vram.explanation.categories import in_backward
from vram.explanation.failures import in_a_line
from vram.frames import Frame, short_name
from vram.torch_hooks.dispatch import NO_TENSORS, operation_name
from vram.torch_hooks.storages import living_tensors, storages_of
from vram.torch_hooks.watchers import wrapped

_MOST_READS = 32  # different ones of a storage; more are not told apart
_MOST_STORAGES = 300_000  # at about 1 KiB each
_OURS = str(Path(__file__).parents[2])
_LOOKS = (_OURS, str(Path(torch.__file__).parent / "_subclasses"))  # at tensors, and not at what is in them
# Methods that give a tensor's bytes to somebody whom no dispatch mode sees. Others of Tensor come to one of these.
_BASE: Any = torch._C.TensorBase  # a subclass may have code of its own for its names
_READING_NONE = ("tqdm._monitor",)  # modules of threads that wake now and then, for something else
_CONTAINERS = (list, tuple, dict)  # of an operation's arguments
_RAW: Any = [(torch.Tensor, name) for name in ("numpy", "tolist", "data_ptr", "__dlpack__", "untyped_storage")]
_RAW += [(owner, "to_dlpack") for owner in (torch, torch.utils.dlpack) if hasattr(owner, "to_dlpack")]


class View(NamedTuple):
    """A tensor as an operation was given it, by the name of the argument."""

    op: str
    argument: str
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    @property
    def n_bytes(self) -> int:
        """Bytes of its elements, each counted once."""
        count = 1
        for size, stride in zip(self.sizes, self.strides, strict=True):
            count *= size if stride else 1
        return count * self.dtype.itemsize

    @property
    def end(self) -> int:
        """Elements of the storage up to its last."""
        return 1 + self.offset + sum((size - 1) * step for size, step in zip(self.sizes, self.strides, strict=True))


class Release(NamedTuple):
    """The instruction of the project's own code that let go of a storage."""

    code: CodeType
    instruction: int
    line: int

    @property
    def frame(self) -> Frame:
        """The line."""
        return Frame(self.code.co_filename, self.line, short_name(self.code.co_qualname))

    @property
    def local(self) -> str:
        """The local variable that it assigns to; "" where it assigns to none."""
        instructions = dis.get_instructions(self.code)
        return next((str(each.argval) for each in instructions if self._assigns(each)), "")

    def _assigns(self, each: dis.Instruction) -> bool:
        return each.offset == self.instruction and each.opname == "STORE_FAST"


@dataclass(slots=True)
class Use:
    """Everything that the run did with one storage. Positions are numbers of events of the trace.

    `outside` says whether one of its different `reads` was outside of the call of a module that made it;
    `hidden`: somebody may have read it unseen. `last_write` is -1 where nothing changed it after it was made. `views`
    are the operations that made views of it.
    """

    maker: str = ""
    source: tuple[int, View] | None = None
    made_in: int = 0
    reads: tuple[View, ...] = ()
    last_read: int = -1
    outside: bool = False
    hidden: bool = False
    last_write: int = -1
    views: tuple[str, ...] = ()
    release: Release | None = None

    @property
    def seen(self) -> bool:
        """Whether somebody read it, or may have."""
        return bool(self.reads) or self.hidden


class Uses:
    """Follows one traced run. Keeps no tensor."""

    def __init__(
        self,
        key_of: Callable[[torch.UntypedStorage], int | None],
        position: Callable[[], int],
        call: Callable[[], int],
    ) -> None:
        """`key_of` gives the number of a storage's allocation, `position` that of the next event, `call` that of the
        call of a module that runs."""
        self._key_of, self._position, self._call = key_of, position, call
        self._uses: dict[int, Use] = {}
        self._collecting = False
        self.failure = ""  # an error of ours, after which nothing is known
        self.unseen = ""  # who may have read what nobody saw it read
        self.backward = False  # whether a backward pass ran
        self.recorded = False  # whether autograd recorded an operation
        self.graph_left = False  # whether a tensor with a graph was alive when the step returned
        self.end = 0  # the position at which the step returned

    def __getitem__(self, key: int) -> Use:
        return self._uses.get(key) or Use(hidden=True)

    def items(self) -> Iterator[tuple[int, Use]]:
        """(key, use) of every storage that was made or read."""
        yield from self._uses.items()

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow the run inside the block; operations are brought by the tracer."""
        with ExitStack() as stack:
            for owner, name in _RAW:
                stack.enter_context(wrapped(owner, name, self._noted))
            others = _other_threads()
            gc.callbacks.append(self._collector)
            stack.callback(gc.callbacks.remove, self._collector)
            yield
            self.end = self._position()
            self.unseen = _ran_meanwhile(others)
            self.graph_left = self.recorded and not self.backward and any(map(_has_graph, living_tensors()))

    def ran(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """An operation ran. Raises nothing: it is called within the step."""
        if self.failure or getattr(func, "namespace", "") == "prim":  # prim.device reads nothing
            return
        try:
            with torch._C.DisableTorchFunctionSubclass():
                self._ran(func, args, kwargs, result)
        except Exception as error:
            self.failure = in_a_line(error)

    def ended(self, key: int) -> None:
        """A storage ends, in the frame that let go of it."""
        use = self._uses.get(key)
        if use is None or self._collecting:
            return
        frame = sys._getframe(1)
        while frame is not None and (whose := _whose(frame.f_code.co_filename)) is _Whose.OURS:
            frame = frame.f_back  # type: ignore[assignment]
        if frame is not None and whose is _Whose.PROJECT:
            use.release = Release(frame.f_code, frame.f_lasti, frame.f_lineno or 0)

    def _ran(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        _, op, names, mutable = _FACTS.get(id(func)) or _facts(func)
        call = self._call()
        named = list(zip(names, args, strict=False))
        if kwargs:
            named += kwargs.items()
        results = [key for tensor in _tensors(result) for key in self._keys(tensor)]
        recorded, given, source = False, [], None
        for name, value in named:
            for tensor in _tensors(value):
                recorded = recorded or tensor.requires_grad
                for key in self._keys(tensor):
                    given.append(key)
                    view, returned = _view(op, name, tensor), key in results
                    source = source or (None if view is None else (key, view))
                    self._used(key, view, call, is_view=returned and not mutable, written=returned and mutable)
        self.backward = self.backward or in_backward()
        self.recorded = self.recorded or (recorded and torch.is_grad_enabled())
        for key in results:
            if key not in self._uses and key not in given:
                self._uses[key] = Use(op, source, call)
        if len(self._uses) > _MOST_STORAGES:
            self._uses.clear()
            self.failure = f"the sample makes more than {_MOST_STORAGES:,} tensors"

    def _used(self, key: int, view: View | None, call: int, *, is_view: bool, written: bool) -> None:
        use = self._uses.get(key)
        if use is None:  # it was there before the run
            use = self._uses[key] = Use(made_in=-1)
        if is_view and view is not None:
            use.views = use.views if view.op in use.views else (*use.views, view.op)
            return
        use.last_read = self._position()
        use.last_write = use.last_read if written else use.last_write
        use.outside |= call != use.made_in
        if view is None or (len(use.reads) >= _MOST_READS and view not in use.reads):
            use.hidden = True
        elif view not in use.reads:
            use.reads = (*use.reads, view)

    def _keys(self, tensor: torch.Tensor) -> list[int]:
        return [key for key in map(self._key_of, storages_of(tensor)) if key is not None]

    def _noted(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """`method` of a tensor, which notes that somebody else may read the tensor through it."""

        @functools.wraps(method)
        def noting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            result = method(tensor, *args, **kwargs)
            if not sys._getframe(1).f_code.co_filename.startswith(_LOOKS) and not self.failure:
                try:
                    for key in self._keys(tensor):
                        self._uses.setdefault(key, Use(made_in=-1)).hidden = True
                except Exception as error:
                    self.failure = in_a_line(error)
            return result

        return noting

    def _collector(self, phase: str, _: Any) -> None:
        self._collecting = phase == "start"


def _other_threads() -> dict[int, tuple[str, str]]:
    """Name of each other thread that may read tensors, and the kernel's count of the time that it has run; "" where
    there is none."""
    others = {}
    for thread in threading.enumerate():
        if type(thread).__module__ in _READING_NONE or thread is threading.current_thread():
            continue
        if thread.native_id is not None:
            count = Path(f"/proc/self/task/{thread.native_id}/schedstat")
            try:
                others[thread.native_id] = thread.name, count.read_text()
            except OSError:  # another system, or a thread that has just ended
                others[thread.native_id] = thread.name, ""
    return others


def _ran_meanwhile(before: Mapping[int, tuple[str, str]]) -> str:
    """Says that one of the threads that were there before has run, or may have: nobody followed what it read."""
    now = _other_threads()
    ran = [name for thread, (name, count) in before.items() if not count or now.get(thread) != (name, count)]
    return f"a thread that was there before, {ran[0]}, may have read what is not known" if ran else ""


def _has_graph(tensor: torch.Tensor) -> bool:
    try:
        return _BASE.grad_fn.__get__(tensor) is not None
    except RuntimeError:  # a view of what was changed in place
        return True


def _view(op: str, argument: str, tensor: torch.Tensor) -> View | None:
    if tensor.layout is not torch.strided or tensor.is_nested:
        return None
    sizes, strides = tuple(tensor.shape), tuple(tensor.stride())
    return View(op, argument, int(tensor.storage_offset()), sizes, strides, tensor.dtype)


def _tensors(value: Any) -> Sequence[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return (value,)
    if type(value) in NO_TENSORS or not isinstance(value, _CONTAINERS):
        return ()
    return [tensor for each in (value.values() if isinstance(value, dict) else value) for tensor in _tensors(each)]


# Facts of each operation by its id, as its own hash is Python code: the operation, so that no other gets that id; its
# name, those of its arguments, and whether it changes one.
_FACTS: dict[int, tuple[Any, str, tuple[str, ...], bool]] = {}


def _facts(func: Any) -> tuple[Any, str, tuple[str, ...], bool]:
    schema = getattr(func, "_schema", None)
    names, mutable = ("",) * 100, True  # one of higher order is taken to change what it gets
    if schema is not None:
        names, mutable = tuple(argument.name for argument in schema.arguments), bool(schema.is_mutable)
    facts = _FACTS[id(func)] = func, operation_name(func), names, mutable
    return facts


class _Whose(Enum):
    """Whom a file belongs to."""

    OURS = auto()
    PROJECT = auto()
    OTHERS = auto()


@functools.cache
def _whose(filename: str) -> _Whose:
    frame = Frame(filename, 0, "")
    if filename.startswith(_OURS):
        return _Whose.OURS
    return _Whose.OTHERS if frame.installed or frame.internal else _Whose.PROJECT
