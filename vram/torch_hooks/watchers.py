"""Threads that start and storages resized in place, which no dispatch mode sees, brought to whoever watches."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import torch

from vram.torch_hooks.dispatch import DispatchMode


class Watcher(Protocol):
    """Somebody who follows operations, and is to know of threads and of resized storages."""

    def following(self) -> AbstractContextManager[object]:
        """Entered in each thread that starts, around every operation."""
        ...

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Called after `storage.resize_`, which is no operation that a dispatch mode sees."""
        ...


_watchers: list[Watcher] = []
_changing = threading.Lock()
_restore = ExitStack()


@contextmanager
def hooked(watcher: Watcher) -> Iterator[None]:
    """Announce threads that start and storages that are resized, in any thread, to `watcher` inside the block.

    `threading.Thread.start` and `torch.UntypedStorage.resize_` are wrapped while anybody watches. Blocks may overlap in
    any order. A thread that started while somebody else watched, as a pool's may have, is followed too, from now on.
    Blind to: threads started while nobody did, and those of no `threading.Thread`.
    """
    with _changing:
        if not _watchers:
            _restore.enter_context(wrapped(threading.Thread, "start", _followed))
            _restore.enter_context(wrapped(torch.UntypedStorage, "resize_", _announced))
        _watchers.append(watcher)
    try:
        yield
    finally:
        with _changing:
            _watchers.remove(watcher)
            if not _watchers:
                _restore.close()


@contextmanager
def wrapped(owner: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Have `owner.name`, of a class or module, be what `wrap` makes of it, inside the block."""
    own = vars(owner).get(name)
    ours = wrap(getattr(owner, name))
    setattr(owner, name, ours)
    try:
        yield
    finally:
        if vars(owner).get(name) is not ours:
            pass  # somebody wrapped it after us: theirs stays, and ours, which does nothing when nobody watches
        elif own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _followed(start: Callable[[threading.Thread], None]) -> Callable[[threading.Thread], None]:
    @functools.wraps(start)
    def wrapped(thread: threading.Thread) -> None:
        watchers = tuple(_watchers)
        if watchers and thread.ident is None:
            # On the thread itself: a class may have a `run` of its own, as threading.Timer does.
            own = vars(thread).get("run")
            run = thread.run

            def followed() -> None:
                _reset(thread, own)
                with ExitStack() as stack:
                    for watcher in watchers:  # the simulation needs more of a thread than its operations
                        stack.enter_context(getattr(watcher, "within_thread", nullcontext)())
                    stack.enter_context(_Relay(watchers))
                    run()

            vars(thread)["run"] = followed
            try:
                start(thread)
            except BaseException:
                _reset(thread, own)
                raise
        else:
            start(thread)

    return wrapped


class _Relay(DispatchMode):
    """Has an operation of its thread followed by those who watched when the thread started, and who do now."""

    supports_higher_order_operators = True

    def __init__(self, first: tuple[Watcher, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._first = first

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with ExitStack() as stack:
            for watcher in dict.fromkeys((*self._first, *_watchers)):
                stack.enter_context(watcher.following())
            return func(*args, **(kwargs or {}))


def _reset(thread: threading.Thread, own: object) -> None:
    if own is None:
        vars(thread).pop("run", None)
    else:
        vars(thread)["run"] = own


def _announced(resize: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(resize)
    def wrapped(storage: torch.UntypedStorage, *args: Any, **kwargs: Any) -> Any:
        result = resize(storage, *args, **kwargs)
        for watcher in tuple(_watchers):
            watcher.resized(storage)
        return result

    return wrapped
