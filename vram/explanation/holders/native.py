"""Memory that objects of native code keep: DLPack, NumPy, TorchScript, collectives, futures, and autocast's cache."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime_CAPI
from typing import Any

import torch

from vram.explanation.holders.autograd import is_tensor, keeps, tensors_in
from vram.explanation.holders.heap import Heap
from vram.explanation.holders.objects import is_array, namespace
from vram.torch_hooks.storages import storages_of

_CAPSULE = type(datetime_CAPI)
# Where a capsule of that name has the address of its memory, and the offset into it. Once it is consumed, its name is
# another, and what it points at may be gone.
_DLPACK = {b"dltensor": (0, 40), b"dltensor_versioned": (32, 72)}
_get_name, _get_pointer = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
_get_name.restype, _get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_EVER = "torch.jit keeps every traced function for good"


def native_kinds() -> tuple[type, ...]:
    """Kinds of objects that keep storages, and that the collector does not know."""
    return (_CAPSULE, *_work_kinds())


def _work_kinds() -> tuple[type, ...]:
    collectives = sys.modules.get("torch.distributed.distributed_c10d")
    return () if collectives is None else tuple(filter(None, [getattr(collectives, "Work", None)]))


class Natives:
    """Objects of a heap that keep storages by native code."""

    def __init__(self, heap: Heap) -> None:
        self._shared = [*_shared_memory(heap)]
        self._keeping = [*_by_native_code(heap)]

    def keepers(self, storage: Any) -> list[tuple[Any, str]]:
        """(object, words) of those that keep `storage`."""
        address, keeping = storage._cdata, []
        with suppress(RuntimeError):  # nothing is behind a fake tensor's
            begin, n_bytes = storage.data_ptr(), storage.nbytes()
            keeping = [
                (obj, how)
                for pointer, obj, how in self._shared
                if begin <= pointer < begin + n_bytes and not (is_tensor(obj) and keeps(obj, address))
            ]
        return keeping + [(obj, how) for tensor, obj, how in self._keeping if keeps(tensor, address)]

    def for_good(self, storage: Any) -> str:
        """Words for what keeps `storage` for as long as the process lives; "" where nothing known does."""
        for function in _traced_functions():
            if any(keeps(constant, storage._cdata) for constant in _constants(function.graph)):
                return f"constant of traced function {function.name}: {_EVER}"
        return ""


def in_autocast_cache(storages: Sequence[Any]) -> list[bool]:
    """Which of `storages` autocast's cache of casted weights keeps. That cache is empty afterwards, and fills again.

    Nothing lists the cache: what is let go of when it is cleared was in it.
    """
    count = torch._C._storage_Use_Count
    before = [count(storage._cdata) for storage in storages]
    torch.clear_autocast_cache()
    return [count(storage._cdata) < owners for storage, owners in zip(storages, before, strict=True)]


def _shared_memory(heap: Heap) -> Iterator[tuple[int, Any, str]]:
    """(address, object, words) of objects that keep memory which may be a tensor's."""
    for obj in heap.survey().natives:
        if is_array(obj) and issubclass(type(_root_of(obj)), torch.Tensor | _CAPSULE):
            yield obj.__array_interface__["data"][0], obj, "NumPy array"
        elif type(obj) is _CAPSULE and (pointer := _dlpack_address(obj)):
            yield pointer, obj, "DLPack capsule"
    for tensor in heap.tensors:
        for storage in storages_of(tensor):
            with suppress(RuntimeError):
                if storage.device.type != "meta" and not storage.resizable() and storage.data_ptr():
                    yield storage.data_ptr(), tensor, "tensor that shares its memory (DLPack)"


def _root_of(array: Any) -> Any:
    """The object that an array is a view of at last, where that is no array."""
    base = array
    while is_array(base) or type(base) is memoryview:
        base = base.base if is_array(base) else base.obj
    return base


def _dlpack_address(capsule: Any) -> int:
    """Where the memory begins that a capsule of DLPack shares; 0 of any other capsule."""
    name = _get_name(capsule)
    if name not in _DLPACK:
        return 0
    at, offset_at = (_get_pointer(capsule, name) + offset for offset in _DLPACK[name])
    data = ctypes.c_void_p.from_address(at).value or 0
    return data + ctypes.c_uint64.from_address(offset_at).value


def _by_native_code(heap: Heap) -> Iterator[tuple[torch.Tensor, Any, str]]:
    """(tensor, object, words) of what objects of PyTorch's native code keep."""
    kept = {function.name for function in _traced_functions()}
    for script in heap.of_kind((torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        if issubclass(type(script), torch.jit.ScriptModule):
            native = namespace(script).get("_c")
            yield from ((tensor, script, f"{what} of TorchScript") for tensor, what in _script_tensors(native))
        else:
            how = f"constant of traced function {script.name}{f' ({_EVER})' * (script.name in kept)}"
            yield from ((constant, script, how) for constant in _constants(script.graph))
    for work in (obj for obj in heap.survey().natives if type(obj) in _work_kinds()):
        with suppress(RuntimeError):  # a back end that has no future of it
            yield from ((tensor, work, "Work of a collective") for tensor in _result(work.get_future()))
    for future in heap.of_kind((torch._C.Future,)):
        with suppress(RuntimeError):
            yield from ((tensor, future, "result of a future") for tensor in _result(future))


def _result(future: Any) -> Iterator[torch.Tensor]:
    if torch._C.Future.done(future):
        with suppress(Exception):  # the error that its work ended in
            yield from tensors_in(torch._C.Future.value(future))


def _traced_functions() -> list[Any]:
    """Every function that torch.jit has compiled, with or without a Python object of it that is left."""
    unit: Any = torch.jit._state._python_cu
    return list(unit.get_functions())


def _constants(graph: Any) -> Iterator[torch.Tensor]:
    """The tensors that a TorchScript graph has as constants."""
    for node in graph.findAllNodes("prim::Constant", True):
        if node.hasAttribute("value") and node.kindOf("value") == "t":
            yield node.t("value")


def _script_tensors(native: Any) -> Iterator[tuple[torch.Tensor, str]]:
    """Constants, parameters and buffers of a TorchScript module and those below it, with the kind of each."""
    if native is None:
        return
    for name in native._method_names():
        yield from ((constant, "constant") for constant in _constants(native._get_method(name).graph))
    parts: Any = torch._C
    yield from ((tensor, "parameter") for _, tensor in parts.ParameterDict(native).items())
    yield from ((tensor, "buffer") for _, tensor in parts.BufferDict(native).items())
    for _, below in parts.ModuleDict(native).items():
        yield from _script_tensors(below)
