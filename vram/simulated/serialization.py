"""Files inside a simulation: what is read is real first, and what has no bytes is not saved."""

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

from vram.simulated.known_values import is_real, tensors

_ON_CARD = "_vram_on_card"  # an attribute of real storages: their bytes there
NO_BYTES = "simulated CUDA has no bytes to save: its tensors are shapes and storages alone"


class Storages(NamedTuple):
    """What a simulation does with storages."""

    unknown: Callable[[int], Tensor]  # so many bytes on the card
    cloned: Callable[[torch.UntypedStorage], torch.UntypedStorage | None]  # another on the card, of one that is there
    moved: Callable[..., Tensor]  # the bytes of a real one on the card
    taking_part: Callable[[], AbstractContextManager[object]]  # around what is made there


def file_answers(storages: Storages, only_one: Callable[[Any], int]) -> dict[tuple[Any, str], Callable[..., Any]]:
    """By owner and name, what reads and saves instead of torch's and safetensors' own.

    `only_one` raises for a device that is another card.
    """
    base = torch.storage._StorageBase
    places: dict[tuple[Any, str], Callable[..., Any]] = {
        (torch, "save"): _without_bytes(torch.save),
        (torch, "load"): _read_first(torch.load, storages, only_one),
        (torch._utils, "_rebuild_tensor"): _rebuilt(torch._utils._rebuild_tensor, storages),
        (base, "clone"): _cloning(base.clone, storages),
        (base, "cuda"): _moving(base.cuda, storages, only_one),
        (base, "cpu"): _moving_back(base.cpu),
        (torch.UntypedStorage, "__new__"): _made(torch.UntypedStorage.__new__, storages, only_one),
    }
    with suppress(ImportError):  # now, lest it come later and be itself
        importlib.import_module("safetensors.torch")
    safetensors = sys.modules.get("safetensors.torch")
    if safetensors is not None:  # would write to addresses that fake tensors have not
        places[safetensors, "load_file"] = _loaded_first(safetensors.load_file)
        places |= {(safetensors, name): _without_bytes(getattr(safetensors, name)) for name in ("save", "save_file")}
        opened = safetensors.safe_open
        reading = functools.partial(_Opened, opened)
        for module in list(sys.modules.values()):  # in the tests and programs that have imported it, too
            if getattr(module, "__dict__", {}).get("safe_open") is opened:
                places[module, "safe_open"] = reading
    return places


def _cloning(clone: Callable[..., Any], storages: Storages) -> Callable[..., Any]:
    def cloning(storage: Any) -> Any:
        copy = storages.cloned(storage)
        return clone(storage) if copy is None else copy

    return cloning


def _made(new: Callable[..., Any], storages: Storages, only_one: Callable[[Any], int]) -> Any:
    """A storage made by itself, on the card where it is asked for there."""

    def making(cls: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        if device is None or torch.device(device).type != "cuda":
            return new(cls, *args, **kwargs) if device is None else new(cls, *args, device=device, **kwargs)
        only_one(device)
        if len(args) > 1 or (args and type(args[0]) is not int) or kwargs:
            raise NotImplementedError("simulated CUDA does not model storages of given values: allocate tensors")
        return storages.unknown(*(args or (0,))).untyped_storage()

    return staticmethod(making)


def _moving(move: Callable[..., Any], storages: Storages, only_one: Callable[[Any], int]) -> Callable[..., Any]:
    def moving(storage: Any, device: Any = None, non_blocking: bool = False) -> Any:
        only_one("cuda" if device is None else device)
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
    """Once: what is read from a file is asked for by each of its tensors."""
    if _ON_CARD not in vars(storage):
        vars(storage)[_ON_CARD] = storages.moved(storage, is_read=_is_read(storage))
    moved: Tensor = vars(storage)[_ON_CARD]
    return moved.untyped_storage()


def _is_read(storage: Any) -> bool:
    """Older files are read after their tensors are made."""
    return not getattr(storage, "_torch_load_uninitialized", False)


def _is_real(storage: Any) -> bool:
    return isinstance(storage, torch.UntypedStorage) and storage.device.type == "cpu"


def _read_first(load: Callable[..., Any], storages: Storages, only_one: Callable[[Any], int]) -> Callable[..., Any]:
    """`torch.load`: real tensors, and on the card those that `map_location`, or the file, has there."""

    @functools.wraps(load)
    def loading(f: Any, map_location: Any = None, *args: Any, mmap: bool | None = None, **options: Any) -> Any:
        def located(storage: Any, location: str) -> Any:
            found = map_location
            if callable(found):
                found = found(storage, location)
                if found is storage:
                    return storage
                if isinstance(found, torch.UntypedStorage):  # as `storage.cuda()` is
                    found = "cuda"
            elif isinstance(found, dict):
                found = found.get(location, location)
            device = torch.device(location if found is None else found)
            if device.type == "cuda":
                only_one(device)
                _onto_the_card(storage, storages)
            return storage if device.type in ("cpu", "cuda") else None  # which torch knows

        there = isinstance(map_location, str | torch.device) and torch.device(map_location).type == "cuda"
        if there and mmap is None and isinstance(f, str | os.PathLike) and zipfile.is_zipfile(f):
            mmap = True  # what all goes to the card needs no main memory
        with _disable_current_modes():
            loaded = load(f, located, *args, mmap=mmap, **options)
        for tensor in tensors(_opened(loaded)):
            if is_real(tensor) and _ON_CARD in vars(tensor.untyped_storage()):
                raise NotImplementedError(
                    f"simulated CUDA does not load {tensor.dtype} to the card: load it to the CPU"
                )
        return loaded

    return loading


def _rebuilt(rebuild: Callable[..., Any], storages: Storages) -> Callable[..., Any]:
    """What comes out of a file or a pickle with real memory is real, or where that went."""

    def rebuilding(storage: Any, *laid: Any) -> Any:
        untyped = storage._untyped_storage
        if not _is_real(untyped):
            return rebuild(storage, *laid)
        if _ON_CARD in vars(untyped):
            with storages.taking_part():
                there = torch.empty(0, dtype=storage.dtype, device=vars(untyped)[_ON_CARD].device)
                return there.set_(_onto_the_card(untyped, storages), *laid)
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return rebuild(storage, *laid)

    return rebuilding


def _without_bytes(save: Callable[..., Any]) -> Callable[..., Any]:
    """`save` for what is real alone."""

    @functools.wraps(save)
    def saving(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(tensor, FakeTensor) for tensor in tensors(_opened((args, kwargs)))):
            raise NotImplementedError(NO_BYTES)
        return save(*args, **kwargs)

    return saving


def _opened(saved: Any) -> Any:
    """With what modules hold in their place."""
    if isinstance(saved, torch.nn.Module):
        return saved.state_dict()
    if isinstance(saved, dict):
        return list(map(_opened, saved.values()))
    return list(map(_opened, saved)) if isinstance(saved, list | tuple) else saved


def _loaded_first(load_file: Callable[..., Any]) -> Callable[..., Any]:
    """Real tensors, which become fake where they are used; on the card at once where it is asked for."""

    def loading(filename: Any, device: Any = "cpu", **options: Any) -> Any:
        with _disable_current_modes():
            loaded = load_file(filename, **options)
        return {name: tensor.to(device) for name, tensor in loaded.items()}

    return loading


class _Opened:
    """A safetensors file as `safe_open` gives it, whose tensors are read into main memory first."""

    def __init__(self, opened: Any, filename: Any, framework: str = "pt", device: Any = "cpu", **options: Any) -> None:
        self._file, self._device = opened(filename, framework, device="cpu", **options), device

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
