"""Values where they decide: small integer and boolean tensors are computed for real, beside the fake ones."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map, tree_map_only

from vram.frames import line_here
from vram.simulated.assumptions import Assumptions
from vram.simulated.by_tensor import ByTensor
from vram.simulated.fake_results import MISSING
from vram.simulated.modes import CardMode
from vram.simulated.operations import (
    is_fault,
    is_real,
    makes_views,
    tensors,
    unmodelled,
    with_real_strides,
    written_arguments,
)
from vram.simulated.value_rules import (
    MOST_ELEMENTS,
    assumed_indices,
    choice_text,
    follows_operands,
    from_nothing,
    is_drawn,
    is_small,
    pattern,
)

_aten = torch.ops.aten
_BY_VALUE = {"aten::_coalesce", "aten::_to_sparse", "aten::_to_sparse_csr"}  # as many elements as are not zero
_BY_PLACE = {f"aten::as_strided{variant}" for variant in ("", "_", "_copy", "_scatter")}  # by places in the storage
_SET = {_aten.set_.source_Storage, _aten.set_.source_Storage_storage_offset}
_VIEWS = {_aten.view.default, _aten._unsafe_view.default, _aten._reshape_alias.default}
_TOPK = {_aten.topk.default}
_CPU = torch.device("cpu")


class UnknownValue(RuntimeError):
    """A read of a value that simulated tensors do not have."""


class KnownValues:
    """The values of a mode's fake tensors, as far as they are known.

    Known are inputs that were real and are integer or boolean (or a handful of floats), tensors made from nothing, as
    masks are, and whatever is computed from known ones alone: all of at most 2^20 elements. Where a choice among
    activations is an index (argmax, multinomial, topk, sort) it is assumed: `token` for the first two (the last of
    fewer), the first positions for the others. `vram.simulated.assumptions` has the rest of what is assumed; `note` is
    called with the words and the line of an assumption that a read depends on.
    """

    def __init__(self, mode: CardMode, token: int, note: Callable[[str, str], None]) -> None:
        self._mode, self.token = mode, token
        self._assumptions = Assumptions(note)
        # Not among the tensors' own attributes, which a copy of a module copies.
        self._values = ByTensor()
        # For views without a known value, as too large ones: the value of the tensor that they are views of.
        self._behind = ByTensor()
        # Addresses of storages of values that something unknown was written into; others may be there later.
        self._lost: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def faked(self, value: Any) -> Any:
        """`value` with every real tensor made fake; its values stay known."""
        return tree_map_only(Tensor, self._fake, value)

    def run(self, func: Any, args: Any, kwargs: Any, operands: Sequence[Tensor] | None = None) -> Any:
        """The operation on fake tensors (`operands`: all of them, where the caller has them); on values, where it reads
        them. Raises UnknownValue."""
        operands = tensors((args, kwargs)) if operands is None else operands
        if follows_operands(func) and any(self.of(tensor) is None for tensor in operands):
            result = self._mode.repeated(func, args, kwargs)
            if result is not MISSING:
                return self._with_value(func, args, kwargs, result, None)
        if func is _aten._local_scalar_dense.default:
            return self._number(func, args, kwargs)
        if func in _SET:
            return self._set(func, args)
        if func._schema.name.startswith("aten::_fused_") and not func._schema.returns:
            self._forget_written(func, args, kwargs)  # a step of an optimizer, in place; fake tensors lack some
            return None
        # Values that are written change first. Others wait: they may not be needed, or be too large to compute.
        writes = func._schema.is_mutable
        value = self._on_values(func, args, kwargs) if writes else None
        if writes:
            self._assumptions.written(func, args, kwargs)
        # Without a rule, fake tensors would run it for real on zeros: no card is there for that, and its values would
        # be wrong.
        self._mode.allow_fallback_kernels = func._schema.name not in _BY_VALUE and all(
            tensor.device.type == "cpu" for tensor in operands
        )
        try:
            result = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            value = value if writes else self._on_values(func, args, kwargs)
            self._note_read((args, kwargs))
            device = next((tensor.device for tensor in operands), _CPU)
            return self._faked_values(self._required(func, value), device)
        except (NotImplementedError, UnsupportedOperatorException) as error:
            self._forget_written(func, args, kwargs)
            raise unmodelled(func, args) from error
        except Exception as error:  # refused for fake tensors; perhaps not for the values
            self._forget_written(func, args, kwargs)
            if is_fault(error):
                raise unmodelled(func, args) from error
            raise
        if not writes:
            value = self._value_of_small(func, args, kwargs, result)
        return self._with_value(func, args, kwargs, result, value)

    def _with_value(self, func: Any, args: Any, kwargs: Any, result: Any, value: Any) -> Any:
        """The result of an operation, once its value is noted, as far as that is known or assumed."""
        if func in _VIEWS:
            result = with_real_strides(args[0], result)
        self._attach(func, args, kwargs, result, value)
        if makes_views(func):
            self._link_views(args[0], result)
        return result

    def _number(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The value of a tensor of one element, as a number."""
        value = self._on_values(func, args, kwargs)
        if value is not None:
            self._note_read(args)
            return value
        return self._required(func, self._assumptions.read_unknown())

    def _note_read(self, operands: Any) -> None:
        values = (self.of(tensor) for tensor in tensors(operands))
        self._assumptions.read(value for value in values if value is not None)

    def finite(self, tensor: Tensor, answer: bool) -> None:
        """`tensor` says of something whether it is finite (or not); of activations that is assumed to be `answer`."""
        if isinstance(tensor, FakeTensor) and self.of(tensor) is None:
            self._assumptions.finite(tensor, answer)

    def _value_of_small(self, func: Any, args: Any, kwargs: Any, result: Any) -> Any:
        if any(tensor.numel() <= MOST_ELEMENTS for tensor in tensors(result)):
            return self._on_values(func, args, kwargs)
        self._forget_written(func, args, kwargs)
        return None

    def _set(self, func: Any, args: Any) -> Any:
        """`tensor.set_(storage, ...)`: from now on it has the value of other tensors on that storage."""
        tensor, storage = args[:2]
        self._values.pop(tensor)
        self._behind.pop(tensor)
        cached, self._mode.cache_enabled = self._mode.cache_enabled, False  # it would keep the storage for good
        try:
            func(*args)
        finally:
            self._mode.cache_enabled = cached
        value = self._value_on(storage)
        if value is not None:
            self._behind[tensor] = value
            same_size = value.untyped_storage().nbytes() == storage.nbytes()
            if same_size and is_small(tensor.dtype, tensor.numel()):
                layout = tensor.storage_offset(), tensor.shape, tensor.stride()
                with _disable_current_modes():
                    placed = value.new_empty([], dtype=tensor.dtype).set_(value.untyped_storage(), *layout)
                self._values[tensor] = placed
        return tensor

    def _value_on(self, storage: torch.UntypedStorage) -> Tensor | None:
        """The value of a tensor on that storage, or of one that it is a view of; None where there is none."""
        for known in (self._values, self._behind):
            for tensor, value in known.items():
                if tensor.layout is torch.strided and tensor.untyped_storage()._cdata == storage._cdata:
                    return value
        return None

    def copied(self, tensor: Tensor, copy_: Tensor, memo: dict[int, Any]) -> None:
        """Give `copy_`, which `copy.deepcopy` with that memo made of `tensor`, a copy of its value."""
        value = self.of(tensor)
        if value is not None:
            with _disable_current_modes():
                self._values[copy_] = copy.deepcopy(value, memo)

    def _link_views(self, base: Any, views: Any) -> None:
        """Note that a write through `views` goes into `base`, whose value they may not share."""
        value = self._value_behind(base) if isinstance(base, Tensor) else None
        if value is not None:
            for view in tensors(views):
                if view is not base and view not in self._values:
                    self._behind[view] = value

    def _value_behind(self, tensor: Tensor) -> Tensor | None:
        value = self._values.get(tensor)
        return self._behind.get(tensor) if value is None else value

    def of(self, tensor: Tensor) -> Tensor | None:
        """The value of `tensor`, on the CPU; None where it is not known."""
        value = self._values.get(tensor)
        return None if value is None or self._is_lost(value) else value

    def passed_on(self, result: Any, made: Any) -> Any:
        """`made`, whose tensors have the values of those of `result`, in whose place they are."""
        for before, after in zip(tensors(result), tensors(made), strict=True):
            if before is not after and (value := self.of(before)) is not None:
                self._values[after] = value
        return made

    def _is_lost(self, value: Tensor) -> bool:
        return value.layout is torch.strided and value.untyped_storage()._cdata in self._lost

    def refuse_lost(self, operands: Any, reader: str) -> None:
        """Raise UnknownValue, naming `reader`, if something unknown was written into a real tensor.

        Its memory does not have what was written.
        """
        for tensor in tensors(operands):
            if self._is_lost(tensor):
                self._required(reader, None)

    def require(self, tensor: Tensor, reader: str, *, copied: bool) -> Tensor:
        """The value of `tensor`, itself or a copy. Raises UnknownValue, naming `reader`."""
        value: Tensor = self._required(reader, self.of(self._fake(tensor)))
        self._assumptions.read([value])
        return value.clone() if copied else value

    def _fake(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        fake = self._mode.from_tensor(tensor)
        if _looks(fake) != _looks(tensor):  # of what it was before it was resized
            self._mode.fake_tensor_converter.meta_converter.tensor_memo.clear()
            fake = self._mode.from_tensor(tensor)
        if is_real(tensor) and fake not in self._values and fake not in self._behind:
            with _disable_current_modes():
                value = tensor.detach()  # the same memory: what is written here is written there
            known = self._values if is_small(tensor.dtype, tensor.numel()) else self._behind
            known[fake] = value
        return fake

    def _on_values(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The same operation on the values of its arguments; None where they are not known."""
        like = pattern(func, args, kwargs)
        if not self._has_values(func, args, kwargs, like):
            self._forget_written(func, args, kwargs)
            return None
        real_args, real_kwargs = tree_map(self._real, (args, kwargs))
        if like is not None:
            real_args = like, *real_args[1:]
        if "device" in real_kwargs:
            real_kwargs["device"] = _CPU
        real_kwargs.pop("pin_memory", None)
        with _disable_current_modes():
            try:
                value = func(*real_args, **real_kwargs)
            except (NotImplementedError, RuntimeError):
                self._forget_written(func, args, kwargs)
                return None
        operands = tensors((real_args, real_kwargs))
        self._assumptions.follow(operands, [*tensors(value), *(operands if func._schema.is_mutable else ())])
        return value

    def _has_values(self, func: Any, args: Any, kwargs: Any, like: Tensor | None) -> bool:
        """Whether the operation can run on values; `like`: the pattern of one that reads none."""
        if is_drawn(func):
            return False
        operands = tensors((args, kwargs))
        values = [self.of(tensor) for tensor in operands]
        if like is None:
            known = all(value is not None for value in values) if operands else from_nothing(func, args, kwargs)
            if not known:
                return False
        return func._schema.name not in _BY_PLACE or all(map(_same_layout, operands, values))

    def _real(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.of(value)
        return _CPU if isinstance(value, torch.device) else value

    def replace(self, tensor: Tensor, data: Tensor) -> None:
        """Follow `tensor.data = data`, which is no operation."""
        if is_real(tensor):  # its fake one was made of the data before
            self._mode.fake_tensor_converter.meta_converter.tensor_memo.clear()
            return
        value = self.of(data)
        if value is None:
            self._values.pop(tensor)
        else:
            self._values[tensor] = value

    @contextmanager
    def swapping(self, first: Tensor, second: Tensor) -> Iterator[None]:
        """Entered around the swap of two tensors' contents, which torch refuses where one is held weakly."""
        both = self._values, self._behind
        before = [(known, known.pop(first), known.pop(second)) for known in both]
        yield
        for known, of_first, of_second in before:
            for tensor, value in ((second, of_first), (first, of_second)):
                if value is not None:
                    known[tensor] = value

    def _forget_written(self, func: Any, args: Any, kwargs: Any) -> None:
        """Forget the values of what the operation writes, and so of every view: what it writes is unknown."""
        for position, name in written_arguments(func):
            written = args[position] if position < len(args) else kwargs.get(name)
            for tensor in tensors(written):
                self.forget(tensor)

    def forget(self, tensor: Tensor) -> None:
        """The value of `tensor` is not known any more."""
        value = self._value_behind(tensor)
        if value is not None:
            storage = value.untyped_storage()
            address = storage._cdata
            self._lost[address] = weakref.ref(storage, lambda _: self._lost.pop(address, None))

    def _required(self, reader: Any, value: Any) -> Any:
        if value is not None:
            return value
        raise UnknownValue(
            f"{reader} at {line_here()} reads a value that simulated tensors do not have (it depends on activations, "
            "or the tensor has more than 2^20 elements): avoid the read, or pass the step a constant"
        )

    def _faked_values(self, value: Any, device: torch.device) -> Any:
        """Fake tensors with the shapes of real ones, and their values."""
        if isinstance(value, Tensor):
            fake = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
            if (n_bytes := value.untyped_storage().nbytes()) > fake.untyped_storage().nbytes():
                fake.untyped_storage().resize_(n_bytes)  # as unique_consecutive, which first makes room for all
            if value.numel() <= MOST_ELEMENTS:
                self._values[fake] = value
            return fake
        if isinstance(value, list | tuple):
            return type(value)(self._faked_values(each, device) for each in value)
        return value

    def _attach(self, func: Any, args: Any, kwargs: Any, result: Any, known: Any) -> None:
        """Note the values of a result: those that are `known`, else assumed ones."""
        if isinstance(result, list | tuple):
            for index, each in enumerate(result):
                part = known[index] if isinstance(known, list | tuple) else None
                self._attach(func, args, kwargs, each, part)
        elif isinstance(result, Tensor):
            value = self._assumed(func, args, kwargs, result) if known is None else known
            if isinstance(value, Tensor) and value.shape == result.shape and value.numel() <= MOST_ELEMENTS:
                self._values[result] = value

    def _assumed(self, func: Any, args: Any, kwargs: Any, result: Tensor) -> Tensor | None:
        """The value that is assumed for a result which is not known; None where nothing is."""
        if (indices := assumed_indices(self.token, func, args, kwargs, result)) is not None:
            if func in _TOPK and self._assumptions.takes_last():
                with _disable_current_modes():
                    indices = indices + (args[0].shape[-1] - result.shape[-1])
            self._assumptions.make(indices, choice_text(func, self.token))
            return indices
        if result.dtype != torch.bool:
            return None
        with _disable_current_modes():
            return self._assumptions.uniform_value(func, args, result, self.of, MOST_ELEMENTS)


def _looks(tensor: Tensor) -> Any:
    if tensor.layout is not torch.strided:
        return tensor.layout
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype


def _same_layout(tensor: Tensor, value: Tensor | None) -> bool:
    return value is None or (tensor.stride(), tensor.storage_offset()) == (value.stride(), value.storage_offset())
