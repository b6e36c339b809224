"""The module whose forward runs, by hooks on all modules that are there only while a sample is traced."""

from __future__ import annotations

import itertools
import re
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn import Module
from torch.nn.modules import module as torch_modules
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

if not hasattr(torch_modules, "_global_forward_hooks_with_kwargs"):
    raise RuntimeError("this PyTorch has no _global_forward_hooks_with_kwargs, where a removed hook leaves its number")

_INDEX = re.compile(r"(?<![^.])\d+(?![^.])")
_with_kwargs: dict[int, bool] = torch_modules._global_forward_hooks_with_kwargs
_COMPILED = "_orig_mod"  # what `torch.compile` puts a module into has it under this name
_calls = itertools.count(1)  # of every trace, so that what an earlier run left is of no call of this one


class _Running(threading.local):
    """The modules that run in one thread, outermost first."""

    def __init__(self) -> None:
        self.places: list[tuple[str, int]] = []  # path, number of the call


class RunningModules:
    """Follows the calls of modules. A root is the outermost module that is called; it gives the paths of its parts.

    A part that is called by itself later (as checkpointing does in the backward pass) keeps its path. Keeps no module.
    """

    def __init__(
        self,
        entered: Callable[[Module], None] = lambda _: None,
        left: Callable[[Module, Any, Any, bool], None] = lambda *_: None,
        called: Callable[[Module], None] = lambda _: None,
    ) -> None:
        """`entered` gets each root at its first call, `called` at every one, `left` each module that returns: its
        arguments, its result, and whether it is outermost."""
        self._entered, self._left, self._called = entered, left, called
        self._running = _Running()
        self._paths: dict[int, tuple[weakref.ref[Module], str]] = {}  # by id

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow every call of a module, in any thread."""
        handles = [register_module_forward_pre_hook(self._before)]
        handles.append(register_module_forward_hook(self._after, with_kwargs=True, always_call=True))
        try:
            with warnings.catch_warnings():  # torch.compile's, of hooks that are ours
                warnings.filterwarnings("ignore", "Using `torch.compile.module.` when there are global hooks")
                yield
        finally:
            for handle in handles:
                handle.remove()
                _with_kwargs.pop(handle.id, None)  # PyTorch leaves it: all modules would be called as if hooked
            self._running = _Running()

    def here(self) -> tuple[str, int]:
        """The path of the innermost module that runs in this thread, and the number of that call; ("", 0) outside."""
        places = self._running.places
        return places[-1] if places else ("", 0)

    def _before(self, module: Module, _: Any) -> None:
        places = self._running.places
        path = self.path(module)
        if path is None and not places:
            self._name(module)
            path = self.path(module)
            self._entered(module)
        if not places:
            self._called(module)
        if path is None:  # made on the way, as no part of its root
            path = ".".join(filter(None, (places[-1][0], type(module).__name__)))
        places.append((path, next(_calls)))

    def _after(self, module: Module, args: Any, *others: Any) -> None:
        """A forward returned, or raised: then PyTorch leaves out the keywords, and there is no result."""
        places = self._running.places
        if places:
            places.pop()
        kwargs, result = others if len(others) == 2 else ({}, None)
        self._left(module, (args, kwargs), result, not places)

    def path(self, module: Module) -> str | None:
        """The path of a part of a known root; None of any other module."""
        known = self._paths.get(id(module))
        return known[1] if known is not None and known[0]() is module else None

    def _name(self, root: Module) -> None:
        kind = type(getattr(root, _COMPILED, root)).__name__
        for name, module in root.named_modules():
            path = folded_path(name) or kind
            path = f"{kind}.{path}" if path.startswith("*") else path  # of nn.Sequential
            self._paths[id(module)] = weakref.ref(module), path


def folded_path(name: str) -> str:
    """ "model.layers.*.mlp" of "model.layers.17.mlp", and of "_orig_mod.model.layers.17.mlp", which is compiled."""
    return _INDEX.sub("*", ".".join(part for part in name.split(".") if part != _COMPILED))
