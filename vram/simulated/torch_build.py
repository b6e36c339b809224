"""Lets a torch that was built without CUDA handle fake tensors on `cuda:0`: slicing, copies, `nonzero`."""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
_CUDA, _META = 1, 14  # c10::DeviceType
_OPERATIONS = "packaged/ATen/native/native_functions.yaml"
_TESTED = ((2, 11), (2, 13), (2, 14))


def fill_cuda_guard() -> None:
    """The CUDA slot of c10's registry of device guards holds the one for meta tensors, which does nothing, from now on.

    It stays: autograd asks it for the stream of a parameter that outlives a simulation, and aborts the process where
    there is none, before anybody can say what is wrong. Else nothing asks it where there is no GPU, and torch's own
    `_ensureCUDADeviceGuardSet` fills it for good too. A torch that was built with CUDA has its own, and is left alone.
    Raises RuntimeError without one for meta tensors.
    """
    if not has_gpu():
        slots = _slots()
        slots[_CUDA] = slots[_CUDA] or slots[_META]


def leave_whole(operations: Iterable[Any]) -> None:
    """From now on C++ does not compose these of others for CUDA tensors, for which a card has a kernel of its own.

    They stay so: where there is no CUDA, nothing but a simulation has such tensors.
    """
    for operation in operations:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), "CUDA"):
            _cuda_kernels().impl(operation, _no_kernel, "CUDA")  # type: ignore[no-untyped-call]


@functools.cache
def _cuda_kernels() -> torch.library.Library:
    return torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]


def _no_kernel(*_: Any) -> Any:
    raise RuntimeError("a kernel of CUDA's, called where a simulated card would have run it")


@contextmanager
def made_on_the_cpu() -> Iterator[None]:
    """Inside, in this thread, `torch.tensor` makes what it is given in main memory, and a mode sees it move to a card.

    Else torch would move it before a mode can see it. Fake tensors ask for the same where there is no GPU.
    """
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        yield
    finally:
        torch._C._set_only_lift_cpu_tensors(before)


def release() -> tuple[int, int]:
    """The release of torch: major and minor."""
    major, minor = str(torch.__version__).split(".")[:2]
    return int(major), int(minor)


@functools.cache
def warn_untested() -> None:
    """Warn, once, of a release that the simulation is not tested with."""
    if release() not in _TESTED:
        tested = ", ".join(f"{major}.{minor}" for major, minor in _TESTED)
        warnings.warn(
            f"simulated CUDA is tested with torch {tested}, not {torch.__version__}: unchecked are fake "
            "tensors, the dispatch of composite operations and the allocator's rules",
            stacklevel=4,
        )


def check(composed: Iterable[Any]) -> None:
    """Raises RuntimeError, with the name of what is missing, where this torch can't be simulated on.

    `composed`: operations that C++ must compose of others. torch crashes where one has no such kernel.
    """
    for operation in composed:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), "CompositeExplicitAutograd"):
            raise RuntimeError(
                f"simulated CUDA takes {operation} apart, which torch {torch.__version__} does not compose"
            )
    needed = ("_only_lift_cpu_tensors", "_set_only_lift_cpu_tensors", "_AutoDispatchBelowAutograd")
    for name in (*needed, "_current_autograd_node"):
        if not hasattr(torch._C, name):
            raise RuntimeError(f"simulated CUDA needs torch._C.{name}, which torch {torch.__version__} lacks")
    if not has_gpu() and not _slots()[_META]:
        raise RuntimeError("torch has no device guard for meta tensors, which simulated CUDA borrows")
    list_of_operations()


@functools.cache
def list_of_operations() -> Path:
    """The file from which torch's code is generated. Raises RuntimeError where this torch comes without it."""
    spec = find_spec("torchgen")  # which torch comes with
    path = Path(spec.origin if spec is not None and spec.origin is not None else "").parent / _OPERATIONS
    if not path.exists():
        raise RuntimeError(f"simulated CUDA reads torchgen/{_OPERATIONS}, which torch {torch.__version__} lacks")
    return path


@functools.cache
def has_gpu() -> bool:
    """Whether torch sees a GPU of its own."""
    return torch.cuda.is_available()


def _slots() -> ctypes.Array[ctypes.c_void_p]:
    name = "c10.dll" if (Path(torch.__file__).parent / "lib" / "c10.dll").exists() else "libc10.so"
    library = Path(torch.__file__).parent / "lib" / name
    if not library.exists():
        library = library.with_suffix(".dylib")
    try:
        return (ctypes.c_void_p * (_META + 1)).in_dll(ctypes.CDLL(str(library)), _REGISTRY)
    except (OSError, ValueError) as error:
        raise RuntimeError(f"torch {torch.__version__} has no {_REGISTRY} (device guards): {error}") from None
