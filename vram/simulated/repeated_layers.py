"""Layers that repeat: the requests of one are made again for the next, without running the code of that.

A model runs layer after layer, most of them alike. Of two that ran one after the other, alike in all that a layer may
depend on, the requests to the allocator are compared. Where they are the same, further layers of this kind are not run:
their requests are made, and tensors without bytes stand for what they leave.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from vram.simulated.context import SimulatedCuda
from vram.simulated.fake_results import new_fakes
from vram.simulated.trace import Outside, Recorder, Scratch, Trace

_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size)
_NO_SETTINGS = frozenset(vars(nn.Module())) - {"training"} | {"forward", "layer_idx"}  # attributes of a module
_RESULT = ""  # beside the names of a state's tensors

_State = Callable[[nn.Module, dict[str, Any]], object]
_Place = tuple[int, int]  # which cut of a recording took a block, and which take of it
_Request = tuple[Any, ...]  # ("take", bytes, stream, tag); ("free", which take); ("drop", name); ("scratch", Scratch)


@dataclass(frozen=True)
class _Call:
    """All that a layer's requests depend on: how it is built, its hidden states, its other arguments, its state."""

    build: object
    hooks: tuple[object, ...]
    hidden: object
    others: tuple[object, ...]
    state: dict[str, object]
    kept: list[object] = field(compare=False)  # so that no id among `others` becomes another object's


@dataclass(frozen=True)
class _Run:
    """One run of a layer: its requests; the names of tensors by the take that they own; how these and the rest of the
    state look at its end."""

    requests: list[_Request]
    owners: dict[int, str]
    looks: dict[str, object]
    makers: dict[str, Callable[[Any], Tensor]] = field(compare=False)
    plain: dict[str, object]


class RepeatedLayers:
    """Runs the layers that it watches, or repeats what the two before have done, where these have done the same.

    Repeated is a layer with the modules, settings, shapes and hooks of those two, that gets the same arguments but for
    its first, hidden states, which look the same, as does its state. Such a layer leaves nothing but its result, one
    tensor, and its state, frees nothing of others, and neither knows a value nor assumes one.
    """

    def __init__(self, cuda: SimulatedCuda, recorder: Recorder, state: _State) -> None:
        """`state`: from a layer and its keyword arguments the object whose attributes it changes, or None."""
        self._cuda, self._recorder, self._state = cuda, recorder, state
        self._before: tuple[_Call, _Run, bool] | None = None  # and whether the one before that did the same
        self._builds: dict[object, int] = {}

    def watch(self, layers: Iterable[nn.Module]) -> None:
        """Run these layers' `forward` here."""
        for layer in layers:
            build = self._builds.setdefault(_build(layer), len(self._builds))
            layer.forward = self._watched(layer, build, layer.forward)

    def _watched(self, layer: nn.Module, build: int, run: Callable[..., Any]) -> Callable[..., Any]:
        inner = [module for module in layer.modules() if module is not layer]  # hooks of its own run around this

        @functools.wraps(run)
        def forward(*args: Any, **kwargs: Any) -> Any:
            state = self._state(layer, kwargs)
            call, before, self._before = self._call(build, inner, state, args, kwargs), self._before, None
            alike = before if before is not None and before[0] == call else None
            if alike is not None and alike[2]:
                self._before = alike
                return self._repeat(alike[1], state)
            cut, trace, places = self._recorder.cuts, self._recorder.trace, self._places(state)
            first, position = len(trace.tags), len(trace)
            with self._cuda.remarking() as remarks:
                result = run(*args, **kwargs)
            if call is not None and not remarks and trace is self._recorder.trace:
                requests = _requests(trace, position, cut, first, places)
                done = None if requests is None else self._done(requests, (cut, first), result, state)
                self._before = None if done is None else (call, done, alike is not None and alike[1] == done)
            return result

        return forward

    def _call(self, build: int, inner: list[nn.Module], state: object, args: Any, kwargs: Any) -> _Call | None:
        """The call; None where an argument, or the state, is of a kind that is not known."""
        hidden = self._looks(args[0]) if args else None
        looks = {name: self._looks(value) for name, value in _attributes(state).items()}
        others, kept = list[object](), list[object]()
        known = all(_add(value, others, kept) for value in (*args[1:], *kwargs, *kwargs.values()))
        if hidden is None or not known or None in looks.values():
            return None
        hooks = [each for one in inner for each in (*one._forward_hooks.values(), *one._forward_pre_hooks.values())]
        codes = tuple(getattr(hook, "__code__", hook) for hook in hooks)
        return _Call(build, codes, hidden, tuple(others), looks, kept)

    def _looks(self, value: object) -> object:
        """All that tells a tensor on the card from another, or a plain value; None for others, and for a tensor whose
        value is known."""
        if isinstance(value, _PLAIN):
            return (value,)
        if type(value) is not FakeTensor or self._cuda.block_of(value.untyped_storage()) is None:
            return None
        return None if self._cuda.knows(value) else _appearance(value)

    def _places(self, state: object) -> dict[_Place, str]:
        """Names of the state's tensors, by where their blocks were taken."""
        tensors = {name: value for name, value in _attributes(state).items() if isinstance(value, Tensor)}
        return {self._place(tensor): name for name, tensor in tensors.items()}

    def _place(self, tensor: Tensor) -> _Place:
        return self._recorder.place(self._cuda.block_of(tensor.untyped_storage()))

    def _done(self, requests: list[_Request], start: _Place, result: object, state: object) -> _Run | None:
        """The run of a layer; None where it can't be repeated."""
        attributes, (current, first) = _attributes(state), start
        plain: dict[str, object] = {name: value for name, value in attributes.items() if isinstance(value, _PLAIN)}
        owners, looks, makers = {}, {}, {}
        for name, tensor in {_RESULT: result, **attributes}.items():
            if name in plain:
                continue
            if (look := self._looks(tensor)) is None or not isinstance(tensor, FakeTensor):
                return None
            make = new_fakes(tensor.fake_mode, tensor.shape, tensor.stride(), 0, tensor.dtype, tensor.fake_device)
            cut, number = self._place(tensor)
            if cut != current or _appearance(make(())) != look:
                return None
            owners[number - first], looks[name], makers[name] = name, look, make
        takes = [each for each in requests if each[0] == "take"]
        freed = {which for kind, which, *_ in requests if kind == "free"}
        if len(owners) != len(looks) or owners.keys() | freed != set(range(len(takes))) or owners.keys() & freed:
            return None
        return _Run(requests, owners, looks, makers, plain)

    def _repeat(self, run: _Run, state: object) -> Tensor:
        """Make the requests of a run, and its result; the state becomes what it was made there."""
        allocator, blocks, made = self._cuda.allocator, list[Any](), dict[str, Tensor]()
        attributes = _attributes(state)
        for kind, what, *rest in run.requests:
            if kind == "take":
                block = allocator.malloc(what, *rest)
                name = run.owners.get(len(blocks))
                if name is not None:
                    made[name] = run.makers[name](())
                    self._cuda.place(made[name], block)
                blocks.append(block)
            elif kind == "free":
                allocator.free(blocks[what])
            elif kind == "drop":
                old = self._cuda.block_of(attributes[what].untyped_storage())
                attributes[what] = made.get(what)
                if old is None or old.allocated:
                    raise RuntimeError(f"a layer's state must alone own its tensors, got another owner of {what!r}")
            else:
                allocator.take_scratch(what.sizes.sizes_at(what.length), what, what.tag, what.stream)
        result = made.pop(_RESULT)
        attributes.update(made | run.plain)
        return result


def _build(layer: nn.Module) -> object:
    """How a layer is built, for comparison."""
    parts = []
    for name, module in layer.named_modules():
        settings = {key: value for key, value in vars(module).items() if key not in _NO_SETTINGS}
        plain = [(key, value if isinstance(value, _PLAIN) else id(value)) for key, value in sorted(settings.items())]
        tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        shapes = [
            (key, each.shape, each.stride(), each.dtype, each.device, each.requires_grad) for key, each in tensors
        ]
        parts.append((name, type(module), tuple(plain), tuple(shapes)))
    return tuple(parts)


def _add(value: object, others: list[object], kept: list[object]) -> bool:
    """Add an argument to `others`, an object by its id; False where nobody would notice its end."""
    if isinstance(value, _PLAIN):
        others.append((type(value), value))
        return True
    if isinstance(value, tuple):
        others.append(len(value))
        return all(_add(each, others, kept) for each in value)
    try:
        kept.append(weakref.ref(value))
    except TypeError:
        return False
    others.append(id(kept[-1]))  # while it is kept, no other object has a reference with this id
    return True


def _appearance(tensor: FakeTensor) -> object:
    keys = torch._C._dispatch_keys(tensor).raw_repr()  # conjugate, negative, inference and more
    storage = tensor.storage_offset(), tensor.untyped_storage().nbytes()
    looks = tensor.shape, tensor.stride(), tensor.dtype, tensor.fake_device, tensor.requires_grad, tensor._is_view()
    return keys, storage, looks


def _attributes(state: object) -> dict[str, Any]:
    return {} if state is None else vars(state)


def _requests(trace: Trace, position: int, cut: int, first: int, places: dict[_Place, str]) -> list[_Request] | None:
    """Requests of a trace from `position` on, where its take number `first` is next; None for those of other kinds.

    `places`: tensors that may be freed, by where they were taken.
    """
    requests: list[_Request] = []
    number = first
    for at in range(position, len(trace)):
        op, other = trace.ops[at], trace.others.get(at)
        if op > 0:
            requests.append(("take", op, trace.streams.get(number, 0), trace.tags[number]))
            number += 1
        elif -op - 1 >= first:
            requests.append(("free", -op - 1 - first))
        elif isinstance(other, Scratch):
            requests.append(("scratch", other))
        else:
            place = (cut - other.back, other.number) if isinstance(other, Outside) else (cut, -op - 1)
            if place not in places:
                return None
            requests.append(("drop", places[place]))
    return requests
