"""Results of operations on fake tensors, made again as PyTorch makes them from its own cache, by a quicker key.

`FakeTensorMode` keeps how an operation's result looks, by everything that it may depend on. To compute its key takes
longer than all the rest. The key here says as much or more, so that calls with one key have one entry there: it is
looked up by PyTorch's key once, and from then on by this one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch._subclasses.fake_tensor as _fake_tensor
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

_fakes: Any = _fake_tensor  # some of its names are its own
MISSING: Any = object()  # no result: the operation must be run
_SEEN: Any = object()  # for a key that came once
_PLAIN = frozenset({int, float, bool, complex, str, type(None), torch.dtype, torch.device, torch.layout})
_PLAIN |= {torch.memory_format}
_PROXY = torch._C._TorchDispatchModeKey.PROXY
# Results that PyTorch keeps none of, though they are views of the first argument and nothing else: it does not note
# whose view they are, or makes an inference tensor of what is none.
_VIEWS_NOT_KEPT = ("unsafe view", "dispatch_key_set mismatch")
_UNSAFE_VIEW = torch.ops.aten._unsafe_view.default
_Maker = Callable[[Any], Any]  # from an operation's arguments to the result


@functools.cache
def check_results() -> None:
    """Raise RuntimeError where this PyTorch's cache is another than is read here, or its fake tensors are."""
    own_names = ("_CacheKeyState", "_BypassDispatchCache", "_DispatchCacheValidEntry")
    modes_names = ("cache", "_cache_key", "_output_from_cache_entry", "_dispatch_impl")
    lacks = [name for name in own_names if not hasattr(_fakes, name)]
    lacks += [name for name in modes_names if not hasattr(FakeTensorMode, name)]
    if lacks:
        raise RuntimeError(f"simulated CUDA reads {lacks[0]} of fake tensors, which torch {torch.__version__} lacks")
    mode, cpu, looks = FakeTensorMode(), torch.device("cpu"), ((2, 3), (3, 1))
    with torch._C._DisableTorchDispatch():
        own = FakeTensor(mode, torch.empty_strided(*looks, dtype=torch.float32, device="meta"), cpu)
    if _told_apart(new_fakes(mode, *looks, 0, torch.float32, cpu)(())) != _told_apart(own):
        raise RuntimeError(f"simulated CUDA makes fake tensors that are not as those of torch {torch.__version__}")


class FakeResults:
    """The results of operations of one mode without a shape environment."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._makers: dict[tuple[Any, ...], _Maker] = {}
        self._others: dict[tuple[Any, ...], Any] = {}  # what runs an operation instead, or _SEEN

    def made(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result, a new one; MISSING where the operation must be run."""
        key = self._key(func, args, kwargs)
        make = None if key is None else self._makers.get(key)
        return MISSING if make is None else make(args)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result, called by the mode; MISSING where the operation must be run by all of PyTorch's rules."""
        key = self._key(func, args, kwargs)
        if key is None:
            return MISSING
        if (make := self._makers.get(key)) is not None:
            return make(args)
        if (run := self._others.get(key)) is None:
            self._others[key] = _SEEN
            return MISSING
        if run is not _SEEN:
            return run(args, kwargs)
        make, run = self._learned(func, args, kwargs)
        if make is None:
            self._others[key] = run
            return run(args, kwargs)
        del self._others[key]
        self._makers[key] = make
        return make(args)

    def _key(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, ...] | None:
        """All that PyTorch's key depends on; None for arguments that it keeps no result of."""
        if torch._C._get_dispatch_mode(_PROXY) is not None:
            return None
        key = [func, torch.get_default_dtype(), torch._C._get_default_device(), torch.is_inference_mode_enabled()]
        if not self._add(key, args):
            return None
        for name, value in kwargs.items():
            key.append(name)
            if not self._add(key, (value,)):
                return None
        return tuple(key)

    def _add(self, key: list[Any], values: Any) -> bool:
        """Add arguments to a key; False where one is of a kind that is not known."""
        for value in values:
            kind = type(value)
            if kind is FakeTensor:
                if value.fake_mode is not self._mode or value.constant is not None or value.layout is not torch.strided:
                    return False
                key += (
                    torch._C._dispatch_keys(value).raw_repr(),  # conjugate, negative, inference and more
                    value.shape,
                    value.stride(),
                    value.storage_offset(),
                    value.dtype,
                    value.fake_device,
                    value.requires_grad,
                    value.untyped_storage().nbytes(),
                )
            elif kind in _PLAIN:
                key += (kind, value)
            elif kind is list or kind is tuple or kind is torch.Size:
                key += (kind, len(value))
                if not self._add(key, value):
                    return False
            else:
                return False
        return True

    def _learned(self, func: Any, args: Any, kwargs: Any) -> tuple[_Maker | None, Callable[[Any, Any], Any]]:
        """The maker of the result as PyTorch makes it from its cache; without one, what runs the operation."""
        mode = self._mode
        try:
            state = _fakes._CacheKeyState(None)
            key = mode._cache_key(state, func, args, kwargs)
        except _fakes._BypassDispatchCache:
            return None, _missing
        entry: Any = FakeTensorMode.cache.get(key)
        if isinstance(entry, _fakes._DispatchCacheValidEntry):
            only = None if entry.is_output_tuple else self._new_tensors(func, entry.output_infos[0])
            return only or (lambda args: mode._output_from_cache_entry(state, entry, key, func, args)), _missing
        if entry is None:
            return None, _missing
        is_view = func.is_view or func is _UNSAFE_VIEW
        views = self._views(func, args, kwargs) if is_view and entry.reason in _VIEWS_NOT_KEPT else None
        return views, lambda args, kwargs: mode._dispatch_impl(func, (), args, kwargs)

    def _new_tensors(self, func: Any, info: Any) -> _Maker | None:
        """The maker of a tensor that PyTorch keeps the looks of; None for results of other kinds."""
        looks = info.metadata
        if info.inplace_idx is not None or looks is None or looks.layout is not torch.strided:
            return None
        if looks.requires_grad or looks.is_conj or looks.is_neg:
            return None
        base = info.view_idx if func.is_view else None
        return new_fakes(self._mode, looks.shape, looks.stride, looks.storage_offset, looks.dtype, looks.device, base)

    def _views(self, func: Any, args: Any, kwargs: Any) -> _Maker | None:
        """The maker of a view of the first argument that equals the operation's own; None where there is none."""
        own, base = self._mode._dispatch_impl(func, (), args, kwargs), args[0]
        if type(own) is not FakeTensor or own.layout is not torch.strided or not isinstance(base, FakeTensor):
            return None
        if own.untyped_storage()._cdata != base.untyped_storage()._cdata or own.constant is not None:
            return None
        for inference in (torch.is_inference_mode_enabled(), False):
            make = new_fakes(
                self._mode, own.shape, own.stride(), own.storage_offset(), own.dtype, own.device, 0, inference=inference
            )
            if _told_apart(make(args)) == _told_apart(own):
                return make
        return None


def _missing(*_: Any) -> Any:
    return MISSING


def _told_apart(made: Tensor) -> tuple[object, ...]:
    """All that tells a fake tensor from another with its place in a storage."""
    keys, version = torch._C._dispatch_keys(made).raw_repr(), None if made.is_inference() else made._version
    return keys, version, made.requires_grad, made.is_leaf, made._is_view(), vars(made)


def new_fakes(
    mode: FakeTensorMode,
    shape: Any,
    strides: Any,
    offset: Any,
    dtype: torch.dtype,
    device: torch.device,
    base: int | None = None,
    *,
    inference: bool | None = None,
) -> _Maker:
    """The maker of fake tensors that look so, as `FakeTensor` makes them.

    `base`: the position of the argument that they are views of. `inference`: whether they are inference tensors; None:
    where that mode is on.
    """
    with torch._C._DisableTorchDispatch():
        model = torch.empty_strided((0,), (1,), dtype=dtype, device="meta")
    attributes = dict(vars(FakeTensor(mode, model, device)))

    def make(args: Any) -> FakeTensor:
        with torch._C._DisableTorchDispatch():
            bare = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
            if base is not None:
                bare.set_(args[base].untyped_storage(), offset, shape, strides)
        made = Tensor._make_subclass(FakeTensor, bare, False, dispatch_device=True, device_for_backend_keys=device)
        torch._C._set_throw_on_mutable_data_ptr(made)
        vars(made).update(attributes)
        return made

    if inference is None:
        return make

    def make_so(args: Any) -> FakeTensor:
        with torch._C._InferenceMode(inference):
            return make(args)

    return make_so
