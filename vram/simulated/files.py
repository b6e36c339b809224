"""Files inside a simulation: what is read is real first, and what has no bytes is not saved."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from vram.simulated.shadows import tensors

_NO_BYTES = "simulated CUDA has no bytes to save: its tensors are shapes and storages alone"


def file_answers() -> dict[tuple[Any, str], Callable[..., Any]]:
    """By owner and name, what reads and saves instead of torch's and safetensors' own."""
    places: dict[tuple[Any, str], Callable[..., Any]] = {(torch, "save"): _without_bytes(torch.save)}
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


def _without_bytes(save: Callable[..., Any]) -> Callable[..., Any]:
    """`save` for what is real alone."""

    @functools.wraps(save)
    def saving(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(tensor, FakeTensor) for tensor in tensors(_opened((args, kwargs)))):
            raise NotImplementedError(_NO_BYTES)
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
