"""Operations that a card refuses where a tensor of the CPU is among its own.

Fake tensors take a tensor of the CPU without dimensions for a number, whatever the operation. On a card those do that
compute each element by itself. Operands of others are checked by code which is generated from torch's list of its
operations, and that list comes with torch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vram.simulated.kernels.call import name
from vram.simulated.torch_build import list_of_operations

_ON_A_CARD = re.compile(r"^    [\w, ]*\bCUDA\b[\w, ]*:|^  structured", re.MULTILINE)
_UNCHECKED, _COMPOSED = "device_check: NoCheck", "CompositeExplicitAutograd"
_OF_TWO = {torch.ops.aten.lerp.Scalar, torch.ops.aten.lerp_.Scalar}
# How many of the first operands must be on the card, where the list leaves an operation unchecked; None means all.
_MUST_BE_THERE = {
    **dict.fromkeys(("addcdiv", "binary_cross_entropy", "mse_loss", "smooth_l1_loss"), None),
    **dict.fromkeys(("addcmul", "masked_fill"), 2),
    **dict.fromkeys(("logical_and", "logical_or", "logical_xor"), 1),
}


def check_devices(func: Any, operands: Sequence[Tensor]) -> None:
    """Raise RuntimeError, in torch's words, where a card refuses the operation because of where its operands are."""
    if len(kinds := {each.device.type for each in operands}) < 2 or "cuda" not in kinds:
        return
    operation = name(func)
    if func.name().removeprefix("aten::") in _checked() or func in _OF_TWO:
        first: int | None = None
    elif operation in _MUST_BE_THERE:
        first = _MUST_BE_THERE[operation]
    else:
        return
    if any(each.device.type != "cuda" for each in operands[:first]):
        found = " and ".join(sorted({str(each.device) for each in operands}, reverse=True))
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, {found}!")


@functools.cache
def _checked() -> frozenset[str]:
    """Names of operations whose operands are checked, and of those composed of such ones alone."""
    entries = list_of_operations().read_text(encoding="utf-8").split("\n- func: ")[1:]
    may_be = {each.partition("(")[0]: each for each in entries if _UNCHECKED not in each}
    checked = {each for each, entry in may_be.items() if _ON_A_CARD.search(entry)}
    bases = {_base(each) for each in checked}
    return frozenset(checked | {each for each, entry in may_be.items() if _COMPOSED in entry and _base(each) in bases})


def _base(operation: str) -> tuple[str, str]:
    """Name and variant, the same of an operation that makes its result and of those that write it somewhere."""
    base, _, variant = operation.partition(".")
    return base.removesuffix("_"), variant.removesuffix("out").removesuffix("_")
