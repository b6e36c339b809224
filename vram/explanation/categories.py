"""Finds what each storage is: by who owns it, and by where it was made. Nothing is guessed by a name.

Owners: parameters and buffers (modules), gradients (parameters), state (optimizers), keys and values (transformers'
cache objects), inputs (the sample, and what a model is called with from outside), logits (the output of what the model
itself names as its output embeddings). Where no owner is known: attention maps, workspace of libraries, gradients on
their way (the autograd engine runs), activations (within the forward of a module), other.
"""

from __future__ import annotations

import inspect
import sys
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from math import prod
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch.nn import Module, Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from vram.explanation.allocations import Allocation, Place
from vram.explanation.declared import declared_files
from vram.explanation.failures import attempt
from vram.explanation.modules import RunningModules
from vram.frames import Frame
from vram.torch_hooks.storages import living, storages_of

_SOFTMAX = ("aten._softmax", "aten._safe_softmax", "aten.softmax")
_PRODUCTS = ("aten.bmm", "aten.baddbmm", "aten.matmul")
_MOST_OBJECTS = 20_000  # looked through of one value
_DEEPEST = 8
_LEAVES = (str, bytes, int, float, type, Module, FunctionType, MethodType, ModuleType, torch.Tensor)
# The first that is known of a storage counts.
_OWNERS = ("weights", "buffers", "optimizer state", "gradients", "KV cache", "logits", "inputs")

if not hasattr(torch._C, "_current_graph_task_id"):
    raise RuntimeError("this PyTorch has no torch._C._current_graph_task_id, which tells whether a backward pass runs")


def in_backward() -> bool:
    """Whether the autograd engine runs in this thread."""
    return torch._C._current_graph_task_id() != -1


class Categories:
    """Follows one traced run, and says afterwards what each allocation was. Keeps no tensor and no module."""

    def __init__(
        self,
        key_of: Callable[[torch.UntypedStorage], int | None],
        called: Callable[[Module], None] = lambda _: None,
    ) -> None:
        """`key_of` gives the number of a living storage's allocation in the trace; `called` gets the outermost module
        of each call."""
        self._key_of = key_of
        self.modules = RunningModules(self._enter, self._leave, called)
        self._known: dict[int, set[str]] = defaultdict(set)  # categories by key
        self._paths: dict[int, str] = {}  # of modules, by the key of their weights and buffers
        self._outputs: dict[int, bool] = {}  # ids of modules that make logits: whether these can be limited
        self._vocabulary = 0
        self._models: set[str] = set()  # paths of parts that name their logits, each with its dot
        self.logits: dict[int, tuple[tuple[int, ...], bool]] = {}  # by key: shape, whether these can be limited
        self.attentions: dict[int, weakref.ref[Module]] = {}  # by key of a map: the transformers model that returned it
        self._made: dict[int, set[tuple[bool, tuple[int, ...]]]] = defaultdict(set)  # by call: is softmax, shape
        self._declared: dict[int, tuple[tuple[Frame, ...], str]] = {}  # by ids of stacks
        self._outside: set[int] = set()  # keys of what was made outside of modules
        self._first: int | None = None  # the key of what was made first: those below were there before
        self._stack = ExitStack()  # of the run that is followed

    @contextmanager
    def following(self, sample: object) -> Iterator[None]:
        """Follow the run of `sample`. Owners that only a look through all objects finds are for `find_owners`."""
        with ExitStack() as stack:
            stack.enter_context(self.modules.following())
            for handle in (
                register_optimizer_step_pre_hook(self._before_step),
                register_optimizer_step_post_hook(self._after_step),
            ):
                stack.callback(handle.remove)
            self._stack = stack
            self._note_all(sample, "inputs")
            yield

    def here(self) -> Place:
        """The place where this thread is."""
        return Place(*self.modules.here(), in_backward())

    def made(self, key: int, allocation: Allocation) -> None:
        """An allocation was made in the run."""
        if self._first is None:
            self._first = key
        if not allocation.call:
            self._outside.add(key)
        elif allocation.op in _SOFTMAX or allocation.op in _PRODUCTS:
            self._made[allocation.call].add((allocation.op in _SOFTMAX, allocation.shape))

    def owner(self, key: int | None) -> str:
        """The category of an allocation whose owner is known; else ""."""
        known = () if key is None else self._known.get(key, ())
        return next((name for name in _OWNERS if name in known), "")

    def of(self, key: int, allocation: Allocation) -> str:
        """The category of an allocation."""
        owner = self.owner(key)
        if owner:
            return owner
        if allocation.workspace:
            return "library workspace"
        declared = self._declared_of(allocation.frames)
        if declared:
            return declared
        if self._is_attention(allocation):
            return "attention maps"
        if self._is_of_logits(allocation):
            return "logits"
        if allocation.call:
            return "activations"
        return "gradients" if allocation.in_backward else "other"

    def _declared_of(self, frames: tuple[Frame, ...]) -> str:
        """The category that the project declares for code on a stack; else "". Stacks are one object each."""
        known = self._declared.get(id(frames))
        if known is None:
            files = declared_files().items()
            names = (name for name, of in files if any(frame.filename in of for frame in frames))
            known = self._declared[id(frames)] = frames, next(names, "")
        return known[1]

    def path(self, key: int, allocation: Allocation) -> str:
        """The path of the module that made it, or has it."""
        return self._paths.get(key, allocation.module)

    def _is_attention(self, allocation: Allocation) -> bool:
        """Whether it has the last two sizes, [q, k], and the elements of a softmax that is made in the same call of a
        module from a batched product of as many."""
        shape, made = allocation.shape, self._made.get(allocation.call, ())
        if len(shape) < 3:
            return False
        alike = [softmax for softmax, other in made if other[-2:] == shape[-2:] and prod(other) == prod(shape)]
        return set(alike) == {True, False}

    def _is_of_logits(self, allocation: Allocation) -> bool:
        """Whether it is made of logits: as long in its last dimension, and made by no part of the model."""
        last = allocation.shape[-1:] == (self._vocabulary,) and self._vocabulary > 0
        return last and self._is_no_part(allocation.module) and not allocation.in_backward and bool(allocation.frames)

    def _is_no_part(self, path: str) -> bool:
        """Whether a module is a model that names its logits, one of its direct parts, or around it."""
        place = f"{path}."
        within = next((place.removeprefix(model) for model in self._models if place.startswith(model)), place)
        return within.count(".") < 2 or any(model.startswith(place) for model in self._models)

    def _enter(self, root: Module) -> None:
        """A root is called for the first time: its weights and buffers have paths, and it, or a model within, may name
        its logits."""
        for module in root.modules():
            path = self.modules.path(module) or ""
            output, _ = attempt(partial(_output_embeddings, module))  # code of the user's
            if output is not None:
                self._outputs[id(output[0])] = output[1] or self._outputs.get(id(output[0]), False)
                if module is not root:
                    self._models.add(f"{path}.")
            for category, tensor in _owned(module):
                for key in self._note(tensor, category):
                    self._paths.setdefault(key, path)
                if isinstance(tensor, Parameter):
                    self._follow_gradient(tensor)

    def _leave(self, module: Module, arguments: Any, result: Any, outermost: bool) -> None:
        if id(module) in self._outputs:
            self._note_all(result, "logits")
            if isinstance(result, torch.Tensor):
                self._vocabulary = int(result.shape[-1])
                limited = self._outputs[id(module)]
                self.logits |= {key: (tuple(result.shape), limited) for key in self._keys(result)}
        self._note_caches((arguments, result) if outermost else arguments)
        if outermost:
            self._note_attentions(module, result)
            for tensor in tensors_in(arguments):
                for key in self._keys(tensor):
                    if key in self._outside or self._first is None or key < self._first:
                        self._known[key].add("inputs")

    def _note_attentions(self, module: Module, result: Any) -> None:
        library = sys.modules.get("transformers.utils.generic")
        if library is not None and isinstance(result, library.ModelOutput):
            for tensor in tensors_in(getattr(result, "attentions", None)):
                self.attentions |= dict.fromkeys(self._keys(tensor), weakref.ref(module))

    def _note_caches(self, values: Any) -> None:
        library = sys.modules.get("transformers.cache_utils")
        if library is not None:
            for cache in _instances(values, library.Cache):
                self._note_all(vars(cache), "KV cache")

    def _before_step(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self._note(parameter.grad, "gradients")

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._note_all(dict(optimizer.state), "optimizer state")

    def _follow_gradient(self, parameter: Parameter) -> None:
        self._note(parameter.grad, "gradients")
        if parameter.requires_grad and parameter.is_leaf:
            try:
                handle = parameter.register_post_accumulate_grad_hook(self._noted)  # type: ignore[no-untyped-call]
            except RuntimeError:  # a subclass that has none
                return
            self._stack.callback(handle.remove)

    def _noted(self, parameter: torch.Tensor) -> None:
        self._note(parameter.grad, "gradients")

    def find_owners(self) -> None:
        """Look through all objects for what is owned now: gradients, states of optimizers that made no step, and
        buffers of modules that no root led to."""
        for one in living(Module, Optimizer, Parameter):
            if issubclass(type(one), Parameter):
                self._note(one, "weights")
                self._note(one.grad, "gradients")
            elif issubclass(type(one), Optimizer):
                self._note_all(dict(vars(one).get("state", {})), "optimizer state")
            else:
                for buffer in vars(one).get("_buffers", {}).values():
                    self._note(buffer, "buffers")

    def _note_all(self, value: Any, category: str) -> None:
        for tensor in tensors_in(value):
            self._note(tensor, category)

    def _note(self, tensor: Any, category: str) -> list[int]:
        keys = self._keys(tensor) if isinstance(tensor, torch.Tensor) else []
        for key in keys:
            self._known[key].add(category)
        return keys

    def _keys(self, tensor: torch.Tensor) -> list[int]:
        with torch._C.DisableTorchFunction():
            try:
                keys = [self._key_of(storage) for storage in storages_of(tensor)]
            except (RuntimeError, ValueError, AttributeError):  # a lazy parameter has no storage yet
                return []
        return [key for key in keys if key is not None]


def _owned(module: Module) -> Iterator[tuple[str, Any]]:
    """Weights and buffers of a module's own, or what stands in their place. TorchScript keeps those of its modules."""
    if isinstance(module, torch.jit.ScriptModule):
        yield from (("weights", tensor) for _, tensor in module.named_parameters(recurse=False))
        yield from (("buffers", tensor) for _, tensor in module.named_buffers(recurse=False))
    else:
        yield from (("weights", tensor) for tensor in vars(module)["_parameters"].values())
        yield from (("buffers", tensor) for tensor in vars(module)["_buffers"].values())


def _output_embeddings(model: Module) -> tuple[Module, bool] | None:
    """The module that a model names as the one whose output are logits, and whether these can be limited."""
    named = getattr(model, "get_output_embeddings", None)
    output = named() if callable(named) else None
    if not isinstance(output, Module) or not isinstance(getattr(output, "weight", None), torch.Tensor):
        return None
    return output, "logits_to_keep" in inspect.signature(model.forward).parameters


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Tensors that a value leads to: through containers and the attributes of objects, not through modules."""
    return _walk(value, torch.Tensor)


def _instances(value: Any, kind: type[Any]) -> Iterator[Any]:
    return _walk(value, kind)


def _walk(value: Any, kind: type[Any]) -> Iterator[Any]:
    """The objects of `kind`, which are not gone into."""
    seen: set[int] = set()
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting and len(seen) < _MOST_OBJECTS:
        one, depth = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if issubclass(type(one), kind):
            yield one
        elif depth < _DEEPEST and not issubclass(type(one), _LEAVES):
            waiting += ((part, depth + 1) for part in _parts(one))


def _parts(one: Any) -> Iterable[Any]:
    if isinstance(one, dict):
        return list(one.values())
    if isinstance(one, list | tuple | set | frozenset):
        return list(one)
    attributes = getattr(one, "__dict__", None)
    return list(attributes.values()) if isinstance(attributes, Mapping) else ()
