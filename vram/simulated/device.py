"""The simulated device, and the ways in which programs name it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DEVICE = torch.device("cuda", 0)


def card_index(device: Any) -> int:
    """The index of the one card. Raises RuntimeError, in torch's words, for another one's."""
    index = device if type(device) is int else torch.device(device).index
    if index not in (None, -1, 0):
        raise other_card(device)
    return 0


def other_card(device: Any) -> RuntimeError:
    """The refusal of a card that is not there, in torch's words."""
    return RuntimeError(f"CUDA error: invalid device ordinal: {device}, of one simulated card")


def cuda_device(name: Any) -> torch.device:
    """The device meant by `cuda(name)`, by `to(name)` where it is a number, and by `device=name`."""
    if name is None:
        return DEVICE
    return torch.device("cuda", name) if type(name) is int else with_index(torch.device(name))


def with_index(device: torch.device) -> torch.device:
    """The card for "cuda" without an index; other devices as they are."""
    return DEVICE if device.type == "cuda" and device.index is None else device


def names_the_card(value: Any) -> bool:
    """Whether `value` is a CUDA device, the name of one, or a tensor on one."""
    device = value.device if isinstance(value, Tensor) else value
    return (isinstance(device, torch.device) and device.type == "cuda") or (
        type(device) is str and device[:5] == "cuda:"
    )
