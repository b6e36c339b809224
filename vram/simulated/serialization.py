"""Files inside a simulation: reads are real first, and simulated tensors, which have no bytes, are not saved."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from vram.simulated.device import card_index
from vram.simulated.operations import is_real, tensors
from vram.simulated.replacements import Places

_ON_CARD = "_vram_on_card"  # an attribute of real storages: their bytes there
NO_BYTES = "simulated CUDA has no bytes to save: its tensors are shapes and storages alone"


class Storages(NamedTuple):
    """A simulation's functions for storages."""

    unknown: Callable[[int], Tensor]  # so many bytes on the card
    cloned: Callable[[torch.UntypedStorage], torch.UntypedStorage | None]  # a copy on the card of one that is there
    moved: Callable[..., Tensor]  # the bytes of a real one on the card
    taking_part: Callable[[], AbstractContextManager[object]]  # entered where tensors are made there


def file_places(storages: Storages) -> Places:
    """Replacements for the functions of torch and safetensors that read and save."""
    base = torch.storage._StorageBase
    return {
        (torch, "save"): _without_bytes(torch.save),
        (torch, "load"): _read_first(torch.load, storages),
        (torch._utils, "_rebuild_tensor"): _rebuilt(torch._utils._rebuild_tensor, storages),
        (base, "clone"): _cloning(base.clone, storages),
        (base, "cuda"): _moving(base.cuda, storages),
        (base, "cpu"): _moving_back(base.cpu),
        (torch.UntypedStorage, "__new__"): _made(torch.UntypedStorage.__new__, storages),
    } | _safetensors_places()


def _safetensors_places() -> Places:
    """Its functions that would read from, or write to, addresses, which fake tensors do not have."""
    with suppress(ImportError):  # imported now: later, it would come without what stands in
        importlib.import_module("safetensors.torch")
    safetensors = sys.modules.get("safetensors.torch")
    if safetensors is None:
        return {}
    places: Places = {(safetensors, "load_file"): _loaded_first(safetensors.load_file)}
    places |= {(safetensors, name): _without_bytes(getattr(safetensors, name)) for name in ("save", "save_file")}
    own = safetensors.safe_open
    reading = functools.partial(_SafeOpen, own)
    for module in list(sys.modules.values()):  # tests and programs that have imported it, too
        if getattr(module, "__dict__", {}).get("safe_open") is own:
            places[module, "safe_open"] = reading
    return places


def _cloning(clone: Callable[..., Any], storages: Storages) -> Callable[..., Any]:
    def cloning(storage: Any) -> Any:
        copy = storages.cloned(storage)
        return clone(storage) if copy is None else copy

    return cloning


def _made(new: Callable[..., Any], storages: Storages) -> Any:
    """A storage without a tensor, on the card where its device says so."""

    def making(cls: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        if device is None or torch.device(device).type != "cuda":
            return new(cls, *args, **kwargs) if device is None else new(cls, *args, device=device, **kwargs)
        card_index(device)
        if len(args) > 1 or (args and type(args[0]) is not int) or kwargs:
            raise NotImplementedError("simulated CUDA does not model storages of given values: allocate tensors")
        return storages.unknown(*(args or (0,))).untyped_storage()

    return staticmethod(making)


def _moving(move: Callable[..., Any], storages: Storages) -> Callable[..., Any]:
    def moving(storage: Any, device: Any = None, non_blocking: bool = False) -> Any:
        card_index("cuda" if device is None else device)
        if _is_real(storage):
            return storages.moved(storage, is_read=_is_read(storage)).untyped_storage()
        return move(storage, device, non_blocking)

    return moving


def _moving_back(move: Callable[..., Any]) -> Callable[..., Any]:
    def moving(storage: Any) -> Any:
        if storage.device.type != "meta":
            return move(storage)
        return torch.empty(storage.nbytes(), dtype=torch.uint8).untyped_storage()

    return moving


def _onto_the_card(storage: Any, storages: Storages) -> torch.UntypedStorage:
    """The storage moved to the card, once: several tensors of a file may share it."""
    if _ON_CARD not in vars(storage):
        vars(storage)[_ON_CARD] = storages.moved(storage, is_read=_is_read(storage))
    moved: Tensor = vars(storage)[_ON_CARD]
    return moved.untyped_storage()


def _is_read(storage: Any) -> bool:
    """Whether its bytes are there: those of older files are read after the tensors are made."""
    return not getattr(storage, "_torch_load_uninitialized", False)


def _is_real(storage: Any) -> bool:
    return isinstance(storage, torch.UntypedStorage) and storage.device.type == "cpu"


def _read_first(load: Callable[..., Any], storages: Storages) -> Callable[..., Any]:
    """`torch.load`: real tensors, and on the card those that `map_location`, or the file, has there."""

    @functools.wraps(load)
    def loading(f: Any, map_location: Any = None, *args: Any, mmap: bool | None = None, **options: Any) -> Any:
        def located(storage: Any, location: str) -> Any:
            return _located(storage, location, map_location, storages)

        to_card = isinstance(map_location, str | torch.device) and torch.device(map_location).type == "cuda"
        if to_card and mmap is None and isinstance(f, str | os.PathLike) and zipfile.is_zipfile(f):
            mmap = True  # main memory need not hold what all goes to the card
        with _disable_current_modes():
            loaded = load(f, located, *args, mmap=mmap, **options)
        for tensor in tensors(_unpacked(loaded)):
            if is_real(tensor) and _ON_CARD in vars(tensor.untyped_storage()):
                raise NotImplementedError(
                    f"simulated CUDA does not load {tensor.dtype} to the card: load it to the CPU"
                )
        return loaded

    return loading


def _located(storage: Any, location: str, map_location: Any, storages: Storages) -> Any:
    """A file's storage, moved to the card where `map_location` or the file's `location` says so; None as torch's."""
    place = map_location
    if callable(place):
        place = place(storage, location)
        if place is storage:
            return storage
        if isinstance(place, torch.UntypedStorage):  # as `storage.cuda()` is
            place = "cuda"
    elif isinstance(place, dict):
        place = place.get(location, location)
    device = torch.device(location if place is None else place)
    if device.type == "cuda":
        card_index(device)
        _onto_the_card(storage, storages)
    return storage if device.type in ("cpu", "cuda") else None  # which torch knows


def _rebuilt(rebuild: Callable[..., Any], storages: Storages) -> Callable[..., Any]:
    """torch's `_rebuild_tensor`: a tensor from a file or a pickle is real, or on the card if its storage went there."""

    def rebuilding(storage: Any, *layout: Any) -> Any:
        untyped = storage._untyped_storage
        if not _is_real(untyped):
            return rebuild(storage, *layout)
        if _ON_CARD in vars(untyped):
            with storages.taking_part():
                there = torch.empty(0, dtype=storage.dtype, device=vars(untyped)[_ON_CARD].device)
                return there.set_(_onto_the_card(untyped, storages), *layout)
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return rebuild(storage, *layout)

    return rebuilding


def _without_bytes(save: Callable[..., Any]) -> Callable[..., Any]:
    """`save`, for real tensors alone."""

    @functools.wraps(save)
    def saving(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(tensor, FakeTensor) for tensor in tensors(_unpacked((args, kwargs)))):
            raise NotImplementedError(NO_BYTES)
        return save(*args, **kwargs)

    return saving


def _unpacked(saved: Any) -> Any:
    """`saved` in lists, with the tensors of each module in its place."""
    if isinstance(saved, torch.nn.Module):
        return saved.state_dict()
    if isinstance(saved, dict):
        return list(map(_unpacked, saved.values()))
    return list(map(_unpacked, saved)) if isinstance(saved, list | tuple) else saved


def _loaded_first(load_file: Callable[..., Any]) -> Callable[..., Any]:
    """`load_file`: real tensors, which become fake where they are used; on the card where `device` says so."""

    def loading(filename: Any, device: Any = "cpu", **options: Any) -> Any:
        with _disable_current_modes():
            loaded = load_file(filename, **options)
        return {name: tensor.to(device) for name, tensor in loaded.items()}

    return loading


class _SafeOpen:
    """`safe_open`, with tensors that are read into main memory first."""

    def __init__(self, own: Any, filename: Any, framework: str = "pt", device: Any = "cpu", **options: Any) -> None:
        self._file, self._device = own(filename, framework, device="cpu", **options), device

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._file.__exit__(*exc_info)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._there(lambda: self._file.get_tensor(name))

    def get_tensors(self, *names: Any) -> dict[str, torch.Tensor]:
        with _disable_current_modes():
            loaded = self._file.get_tensors(*names)
        return {name: tensor.to(self._device) for name, tensor in loaded.items()}

    def get_slice(self, name: str) -> Any:
        return _Slice(self._file.get_slice(name), self._there)

    def _there(self, read: Callable[[], torch.Tensor]) -> torch.Tensor:
        with _disable_current_modes():
            tensor = read()
        return tensor.to(self._device)


class _Slice:
    def __init__(self, own: Any, there: Callable[[Callable[[], torch.Tensor]], torch.Tensor]) -> None:
        self._own, self._there = own, there

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __getitem__(self, places: Any) -> torch.Tensor:
        return self._there(lambda: self._own[places])
