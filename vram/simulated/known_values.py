"""Values where they decide: small integer and boolean tensors are computed for real, beside the fake ones."""

from __future__ import annotations

import copy
import functools
import math
import weakref
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from vram.frames import line_here

_aten = torch.ops.aten
_MOST_ELEMENTS = 2**20
_MOST_FLOATS = 16  # from outside: a scale, a temperature; never activations
_KINDS = (torch.bool, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_FACTORIES = {
    f"aten::{name}" for name in ("arange", "empty", "eye", "full", "linspace", "ones", "scalar_tensor", "zeros")
}
_LIKE = {f"aten::{name}" for name in ("full_like", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like")}
_DRAWN = {f"aten::{name}" for name in ("randint", "randperm", "random_")}  # small random integers are drawn for real
_BY_VALUE = {"aten::_coalesce", "aten::_to_sparse", "aten::_to_sparse_csr"}  # as many as are not zero
_LAID = {f"aten::as_strided{variant}" for variant in ("", "_", "_copy", "_scatter")}  # by places in the storage
_SET = {_aten.set_.source_Storage, _aten.set_.source_Storage_storage_offset}
_VIEWS = {_aten.view.default, _aten._unsafe_view.default, _aten._reshape_alias.default}
_CPU = torch.device("cpu")


class UnknownValue(RuntimeError):
    """A value was asked for that a simulation does not have: it depends on activations."""


class Shadows:
    """What fake tensors of a mode hold, as far as it is known.

    Known are inputs that were real and are integer or boolean (or a handful of floats), what is made of nothing, as
    masks are, and whatever is computed from known ones alone: all of at most 2^20 elements. Where a choice among
    activations is an index (argmax, multinomial, topk, sort) it is assumed: `token` for the first two (of fewer, the
    last), the first positions for the others.
    """

    def __init__(self, mode: FakeTensorMode, token: int) -> None:
        self._mode, self.token = mode, token
        # Not among the tensors' own attributes, which a copy of a module copies.
        self._values: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()
        # Views of known ones that are not known themselves, as too large ones: what they are views of.
        self._unseen: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()
        # By address, storages of shadows that something unknown was written into; others may lie there later.
        self._spoiled: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def faked(self, value: Any) -> Any:
        """`value` with every real tensor made fake; what it held stays known."""
        return tree_map_only(Tensor, self._fake, value)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operation on fake tensors; on values, where it asks for them. Raises UnknownValue."""
        if func is _aten._local_scalar_dense.default:
            return self._or_unknown(func, self._on_values(func, args, kwargs))
        if func in _SET:
            return self._set(func, args)
        # What is written into changes; else there may be no need, and no room, for what would be forgotten.
        at_once = func._schema.is_mutable
        known = self._on_values(func, args, kwargs) if at_once else None
        # What fake tensors have no rule for is run for real on zeros, which a card is not there for, nor would their
        # values be right.
        self._mode.allow_fallback_kernels = func._schema.name not in _BY_VALUE and all(
            tensor.device.type == "cpu" for tensor in tensors((args, kwargs))
        )
        try:
            result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            known = known if at_once else self._on_values(func, args, kwargs)
            device = next((tensor.device for tensor in tensors((args, kwargs))), _CPU)
            return self._made(self._or_unknown(func, known), device)
        except (NotImplementedError, UnsupportedOperatorException) as error:
            self._spoil(func, args, kwargs)
            raise unmodelled(func, args) from error
        except Exception:  # refused, and perhaps not so on the values
            self._spoil(func, args, kwargs)
            raise
        if func in _VIEWS:
            result = _laid_as_real_ones(args[0], result)
        if not at_once:
            if any(tensor.numel() <= _MOST_ELEMENTS for tensor in tensors(result)):
                known = self._on_values(func, args, kwargs)
            else:
                self._spoil(func, args, kwargs)
        self._attach(func, args, kwargs, result, known)
        if _makes_views(func):
            self._remember(args[0], result)
        return result

    def _set(self, func: Any, args: Any) -> Any:
        """`tensor.set_(storage, ...)`: it holds what others hold there."""
        tensor, storage = args[:2]
        self._values.pop(tensor, None)
        self._unseen.pop(tensor, None)
        cached, self._mode.cache_enabled = self._mode.cache_enabled, False  # it would keep the storage for good
        try:
            func(*args)
        finally:
            self._mode.cache_enabled = cached
        for known in (self._values, self._unseen):
            for other, value in list(known.items()):
                if other.layout is torch.strided and other.untyped_storage()._cdata == storage._cdata:
                    self._unseen[tensor] = value
                    alike = value.untyped_storage().nbytes() == storage.nbytes()
                    if alike and _worth(tensor.dtype, tensor.numel()):
                        with _disable_current_modes():
                            laid = tensor.storage_offset(), tensor.shape, tensor.stride()
                            self._values[tensor] = value.new_empty([], dtype=tensor.dtype).set_(
                                value.untyped_storage(), *laid
                            )
                    return tensor
        return tensor

    def copied(self, tensor: Tensor, copy_: Tensor, memo: dict[int, Any]) -> None:
        """`copy_` is what `copy.deepcopy` with that memo made of `tensor`."""
        value = self.of(tensor)
        if value is not None:
            with _disable_current_modes():
                self._values[copy_] = copy.deepcopy(value, memo)

    def _remember(self, base: Any, views: Any) -> None:
        """What is written through `views` is written into `base`, whose value they may not share."""
        value = self._value_behind(base) if isinstance(base, Tensor) else None
        if value is not None:
            for view in tensors(views):
                if view is not base and view not in self._values:
                    self._unseen[view] = value

    def _value_behind(self, tensor: Tensor) -> Tensor | None:
        value: Tensor | None = self._values.get(tensor)
        return self._unseen.get(tensor) if value is None else value

    def of(self, tensor: Tensor) -> Tensor | None:
        """What `tensor` holds, on the CPU; None where that is not known."""
        value: Tensor | None = self._values.get(tensor)
        return None if value is None or self._is_lost(value) else value

    def _is_lost(self, value: Tensor) -> bool:
        return value.layout is torch.strided and value.untyped_storage()._cdata in self._spoiled

    def refuse_lost(self, asked: Any, asking: str) -> None:
        """Raises UnknownValue where something unknown was written into a real tensor, whose memory has not got it."""
        for tensor in tensors(asked):
            if self._is_lost(tensor):
                self._or_unknown(asking, None)

    def held(self, tensor: Tensor, asking: str, *, copied: bool) -> Tensor:
        """What `tensor` holds, itself or a copy. Raises UnknownValue, with who asks."""
        value: Tensor = self._or_unknown(asking, self.of(self._fake(tensor)))
        return value.clone() if copied else value

    def _fake(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        fake = self._mode.from_tensor(tensor)
        if _looks(fake) != _looks(tensor):  # of what it was before it was resized
            self._mode.fake_tensor_converter.meta_converter.tensor_memo.clear()
            fake = self._mode.from_tensor(tensor)
        if is_real(tensor) and fake not in self._values and fake not in self._unseen:
            with _disable_current_modes():
                value = tensor.detach()  # the same memory: what is written here is written there
            known = self._values if _worth(tensor.dtype, tensor.numel()) else self._unseen
            known[fake] = value
        return fake

    def _on_values(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The same operation on what its arguments hold; None where that is not known."""
        found = list(tensors((args, kwargs)))
        values = [self.of(tensor) for tensor in found]
        like = _looking_like(func, args, kwargs)
        known = like is not None or (
            all(value is not None for value in values) if found else _plain_factory(func, args, kwargs)
        )
        seeded = torch.Tag.nondeterministic_seeded in func.tags and func._schema.name not in _DRAWN
        if func._schema.name in _LAID and not all(map(_lie_alike, found, values)):
            known = False
        if not known or seeded:
            self._spoil(func, args, kwargs)
            return None
        real_args, real_kwargs = tree_map(self._real, (args, kwargs))
        if like is not None:
            real_args = like, *real_args[1:]
        if "device" in real_kwargs:
            real_kwargs["device"] = _CPU
        real_kwargs.pop("pin_memory", None)
        with _disable_current_modes():
            try:
                return func(*real_args, **real_kwargs)
            except (NotImplementedError, RuntimeError):
                self._spoil(func, args, kwargs)
                return None

    def _real(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.of(value)
        return _CPU if isinstance(value, torch.device) else value

    def replace(self, tensor: Tensor, data: Tensor) -> None:
        """`tensor.data = data`, which is no operation."""
        if is_real(tensor):  # what its fake one was made of is gone
            self._mode.fake_tensor_converter.meta_converter.tensor_memo.clear()
            return
        value = self.of(data)
        if value is None:
            self._values.pop(tensor, None)
        else:
            self._values[tensor] = value

    @contextmanager
    def swapping(self, first: Tensor, second: Tensor) -> Iterator[None]:
        """Around the swap of two tensors' contents, which tensors that are weakly held refuse."""
        both = self._values, self._unseen
        before = [(known, known.pop(first, None), known.pop(second, None)) for known in both]
        yield
        for known, of_first, of_second in before:
            for tensor, value in ((second, of_first), (first, of_second)):
                if value is not None:
                    known[tensor] = value

    def _spoil(self, func: Any, args: Any, kwargs: Any) -> None:
        """What is written into with something unknown is not known any more, nor is any view of it."""
        for position, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = args[position] if position < len(args) else kwargs.get(argument.name)
                for tensor in tensors(written):
                    self.lose(tensor)

        if "batch_norm" in func._schema.name:  # written into as no schema says
            asked = _arguments(func, args, kwargs)
            for tensor in tensors([asked.get("running_mean"), asked.get("running_var")]):
                self.lose(tensor)

    def lose(self, tensor: Tensor) -> None:
        """What `tensor` holds is not known any more."""
        value = self._value_behind(tensor)
        if value is not None:
            storage = value.untyped_storage()
            address = storage._cdata
            self._spoiled[address] = weakref.ref(storage, lambda _: self._spoiled.pop(address, None))

    def _or_unknown(self, func: Any, known: Any) -> Any:
        if known is not None:
            return known
        raise UnknownValue(
            f"{func} at {line_here()} needs a value that depends on activations, or is one of too many, which a "
            "simulation does not have: keep it on the device, or give the step what it would be"
        )

    def _made(self, value: Any, device: torch.device) -> Any:
        """Fake tensors of the shape of known ones."""
        if isinstance(value, Tensor):
            fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
            if (held := value.untyped_storage().nbytes()) > fake.untyped_storage().nbytes():
                fake.untyped_storage().resize_(held)  # as unique_consecutive, which first makes room for all
            if value.numel() <= _MOST_ELEMENTS:
                self._values[fake] = value
            return fake
        return type(value)(self._made(each, device) for each in value) if isinstance(value, list | tuple) else value

    def _attach(self, func: Any, args: Any, kwargs: Any, result: Any, known: Any) -> None:
        if isinstance(result, list | tuple):
            for index, each in enumerate(result):
                part = known[index] if isinstance(known, list | tuple) else None
                self._attach(func, args, kwargs, each, part)
        elif isinstance(result, Tensor):
            value = self._assumed(func, args, kwargs, result) if known is None else known
            if isinstance(value, Tensor) and value.shape == result.shape and value.numel() <= _MOST_ELEMENTS:
                self._values[result] = value

    def _assumed(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> Tensor | None:
        """Indices that could be chosen: within what they are chosen from, and different where a real run's would be."""
        if result.dtype != torch.int64 or not _worth(result.dtype, result.numel()):
            return None
        name, asked = func._schema.name, _arguments(func, args, kwargs)
        with _disable_current_modes():
            if name == "aten::argmax":
                choices = asked["self"].numel() if asked["dim"] is None else _size(asked["self"], asked["dim"])
                return torch.full(result.shape, min(self.token, choices - 1))
            if name == "aten::multinomial":
                choices, places = _size(asked["self"], -1), torch.arange(_size(result, -1))
                first = min(self.token, choices - 1)
                return ((first + places * (not asked["replacement"])) % choices).expand(result.shape).clone()
            if name in ("aten::topk", "aten::sort") and result.dim():
                dim = asked["dim"] % result.dim()
                places = torch.arange(result.shape[dim]).view(-1, *[1] * (result.dim() - dim - 1))
                return places.expand(result.shape).clone()
            if name in ("aten::max", "aten::min"):
                return torch.zeros(result.shape, dtype=torch.int64)
        return None


def _arguments(func: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """An operation's arguments by name, with the defaults of those that were not given."""
    defaults: dict[str, Any] = {each.name: each.default_value for each in func._schema.arguments}
    return defaults | dict(zip(defaults, args, strict=False)) | kwargs


@functools.cache
def _makes_views(func: Any) -> bool:
    aliases = [argument.alias_info for argument in func._schema.arguments[:1]]
    return any(alias is not None and not alias.is_write for alias in aliases)


def _size(tensor: Tensor, dim: int) -> int:
    return tensor.shape[dim] if tensor.dim() else 1


def unmodelled(func: Any, args: Any) -> NotImplementedError:
    """The refusal of an operation, by its name and the line."""
    kind = " of sparse tensors" if any(tensor.layout is not torch.strided for tensor in tensors(args)) else ""
    return NotImplementedError(f"simulated CUDA does not model {func}{kind}, at {line_here()}: measure on a GPU")


def _laid_as_real_ones(base: Tensor, view: Tensor) -> Tensor:
    """A fake view with the strides of a real one.

    They differ where a size is 1, by which torch tells whether the channels come last: convolutions would copy, or not.
    """
    if 1 not in view.shape or not view.numel():
        return view
    strides = _strides_of_view(base.shape, base.stride(), view.shape)
    return view if view.stride() == strides else view.as_strided(view.shape, strides)


@functools.lru_cache(maxsize=4096)
def _strides_of_view(shape: Any, strides: Any, of: Any) -> tuple[int, ...]:
    with _disable_current_modes():
        return torch.empty_strided(shape, strides, device="meta").view(of).stride()


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors(part)
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))


def is_real(tensor: Tensor) -> bool:
    """Whether it has bytes, in main memory."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.device.type == "cpu"


@functools.cache
def aliases(func: Any) -> bool:
    """Whether an operation's result is memory that it was given."""
    return any(each.alias_info is not None for each in func._schema.arguments)


def _looks(tensor: Tensor) -> Any:
    if tensor.layout is not torch.strided:
        return tensor.layout
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype


def _lie_alike(tensor: Tensor, value: Tensor | None) -> bool:
    return value is None or (tensor.stride(), tensor.storage_offset()) == (value.stride(), value.storage_offset())


def _worth(dtype: torch.dtype, elements: int) -> bool:
    return elements <= (_MOST_ELEMENTS if dtype in _KINDS else _MOST_FLOATS)


def _looking_like(func: Any, args: Any, kwargs: Any) -> Tensor | None:
    """Of an operation that asks a tensor only how it looks, as zeros_like, and makes a small one: one that looks so."""
    if func._schema.name not in _LIKE:
        return None
    given, new = args[0], func._schema.name.startswith("aten::new_")
    elements = math.prod(args[1]) if new else given.numel()
    if given.layout is not torch.strided or not _worth(kwargs.get("dtype") or given.dtype, elements):
        return None
    shape, strides = ((), ()) if new else (given.shape, given.stride())
    with _disable_current_modes():  # a column of a large matrix is as long as that
        return torch.empty_like(torch.empty_strided(shape, strides, dtype=given.dtype, device="meta"), device=_CPU)


def _plain_factory(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether it makes a small tensor from nothing."""
    if func._schema.name not in _FACTORIES | _DRAWN:
        return False
    numbers = [value for value in args if isinstance(value, int | float)]
    if func._schema.name in ("aten::arange", "aten::eye", "aten::linspace"):
        return all(abs(number) <= _MOST_ELEMENTS for number in numbers)
    size = next((value for value in args if isinstance(value, list | tuple)), ())
    if func._schema.name == "aten::empty":  # weights, too
        return _worth(kwargs.get("dtype") or torch.float32, math.prod(size))
    return math.prod(size) <= _MOST_ELEMENTS
