"""Private parts of torch by which holders are found, checked before the first search."""

from __future__ import annotations

import torch


def check_torch() -> None:
    """Raise ImportError that names each private part of torch that the search needs and this torch lacks."""
    node = (torch.ones(1, requires_grad=True) * torch.ones(1)).grad_fn
    saved = getattr(node, "_raw_saved_other", None)
    parts = {
        "torch._C._storage_Use_Count": hasattr(torch._C, "_storage_Use_Count"),
        "torch.UntypedStorage._cdata": hasattr(torch.UntypedStorage, "_cdata"),
        "Node._sequence_nr": hasattr(node, "_sequence_nr"),
        "Node._raw_saved_*": saved is not None,
        "SavedTensor.data": saved is None or hasattr(type(saved), "data"),
    }
    missing = [name for name, there in parts.items() if not there]
    if missing:
        raise ImportError(
            f"vram does not find holders with torch {torch.__version__}, which lacks {', '.join(missing)}"
        )
