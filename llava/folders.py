"""Folders of models, by path or by hub id. The only module that may use the network."""

from __future__ import annotations

import re
from pathlib import Path

from llava.checkpoint import first_line
from llava.errors import BadInput, shown
from llava.weight_files import has_weights

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_FILES = ["*.json", "*.safetensors", "tokenizer.model"]
_DESCRIPTIONS = ["*.json", "tokenizer.model"]
_PICKLES = ["pytorch_model*.bin", "mm_projector.bin"]


def local_folder(name: str) -> Path | None:
    """The existing folder of that name, else None. Raises BadInput for a name that can't be one, or is a file."""
    try:
        if name and Path(name).is_dir():
            return Path(name)
        there = bool(name) and Path(name).exists()
    except (OSError, ValueError) as error:
        raise BadInput(f"the model path must be usable, got {shown(name)}: {error}") from error
    if there:
        raise BadInput(f"the model must be a folder, not a file, got {shown(name)}")
    return None


def is_hub_id(name: str) -> bool:
    """Whether `name` is written as hub ids are, "owner/name"."""
    return _HUB_ID.fullmatch(name) is not None


def fetched(hub_id: str) -> Path:
    """The folder of a hub id, over the network where it is not in the hub's cache. Raises BadInput.

    Pickles are fetched only where there are no safetensors.
    """
    folder = _snapshot(hub_id, _FILES, local_files_only=False)
    if not has_weights(folder):
        folder = _snapshot(hub_id, _FILES + _PICKLES, local_files_only=False)
    return folder


def described(name: str) -> Path | None:
    """The folder of that name, or of a hub id with its config and tokenizer alone, over the network where they are not
    in the hub's cache; None for any other name. Raises BadInput."""
    folder = local_folder(name)
    return _snapshot(name, _DESCRIPTIONS, local_files_only=False) if folder is None and is_hub_id(name) else folder


def cached(hub_id: str) -> Path | None:
    """The folder of a hub id in the hub's cache, else None. Never uses the network."""
    try:
        return _snapshot(hub_id, _FILES + _PICKLES, local_files_only=True)
    except BadInput:
        return None


def _snapshot(hub_id: str, patterns: list[str], *, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download  # needed for hub ids alone

    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns, local_files_only=local_files_only))
    except Exception as error:  # the client's, the transport's or the disk's
        raise BadInput(
            f"the model must be an existing folder, a preset or a hub id that can be fetched, got {shown(hub_id)}: "
            f"{first_line(error)}"
        ) from error
