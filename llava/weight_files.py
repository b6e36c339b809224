"""The weight files of a folder: safetensors, else pickles of tensors; whole or in shards. Nothing in them is run."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from llava.checkpoint import first_line, reading
from llava.errors import BadInput, shown
from vram.replaying.out_of_memory import is_out_of_memory

_NAMES = ("model.safetensors", "pytorch_model.bin")


def has_weights(folder: Path) -> bool:
    """Whether `folder` has weights of any of the layouts."""
    return any((folder / candidate).is_file() for name in _NAMES for candidate in (name, f"{name}.index.json"))


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: the first of safetensors, its shards, a pickle, its shards.

    Raises BadInput where there is none of them, and where an index is broken or names a file outside `folder`.
    """
    for name in _NAMES:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [folder / shard for shard in reading(folder, index.name, partial(_shards, index))]
    raise BadInput(
        f"a checkpoint must have {' or '.join(_NAMES)}, or an index of its shards, got none in {shown(str(folder))}"
    )


def open_tensors(files: Iterable[Path]) -> dict[str, Any]:
    """All tensors by name, none of them read yet: `tensors[name][...]` reads one, `shape_of` needs none of it.

    Raises BadInput, naming the file, for one that is missing, not whole, or holds anything but named tensors.
    """
    tensors: dict[str, Any] = {}
    for file in files:
        tensors |= _opened(file)
    return tensors


def shape_of(tensor: Any) -> tuple[int, ...]:
    """The shape of a tensor of `open_tensors`."""
    return tuple(tensor.shape if isinstance(tensor, Tensor) else tensor.get_shape())


def _shards(index: Path) -> list[str]:
    names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    for name in names:
        # Its name counts, not where links lead: in a hub cache every file is a link to elsewhere.
        if name in ("", ".", "..") or "\\" in name or Path(name).name != name:
            raise BadInput(
                f"an index must name files of its folder, got {shown(name)} in {index.name} in "
                f"{shown(str(index.parent))}"
            )
    return names


def _opened(file: Path) -> dict[str, Any]:
    fault = f"a weight file must be whole, got {shown(file.name)} in {shown(str(file.parent))}"
    try:
        if file.suffix == ".safetensors":
            opened: Any = safe_open(file, framework="pt")
            return {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # it is no dict
        # Only the format of today can be mapped instead of read.
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:  # torch's text is advice to trust the file
        raise BadInput(f"{fault}: it is no pickle of tensors only") from error
    except Exception as error:  # a broken file can raise almost anything
        if isinstance(error, MemoryError) or is_out_of_memory(error):
            raise
        raise BadInput(f"{fault}: {first_line(error)}") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise BadInput(f"{fault}: it holds other things than named tensors")
    return tensors
