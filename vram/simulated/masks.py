"""Operations that choose by masks, as a card does them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vram.simulated.known_values import KnownValues

_aten = torch.ops.aten
_WHERE, _TO_COPY = _aten.where.self, _aten._to_copy.default
BY_MASK = {_aten.index.Tensor, _aten.masked_select.default, _WHERE}


def by_places(func: Any, args: Any, values: KnownValues, run: Callable[[Any, Any, Any], Any]) -> tuple[Any, Any]:
    """The operation, and its arguments, that a card runs for one of BY_MASK; `run` runs what comes before.

    Masks that are known become the places where they are true, which are searched where the mask is. A mask of bytes
    that chooses between two tensors becomes one of truths.
    """
    if func is _WHERE:
        mask = args[0]
        return func, args if mask.dtype == torch.bool else (run(_TO_COPY, (mask,), {"dtype": torch.bool}), *args[1:])
    if func is _aten.masked_select.default:
        shape = torch.broadcast_shapes(args[0].shape, args[1].shape) or (1,)  # type: ignore[no-untyped-call]
        mask = values.run(_aten.expand.default, (args[1], shape), {})
        args = values.run(_aten.expand.default, (args[0], shape), {}), [mask]
    indices: list[Tensor | None] = []
    for index in args[1]:
        if index is not None and index.dtype in (torch.bool, torch.uint8) and values.of(index) is not None:
            places = run(_aten.nonzero.default, (index,), {})
            if places.device != args[0].device:
                places = run(_TO_COPY, (places,), {"device": args[0].device})
            indices.extend(values.run(_aten.select.int, (places, 1, dim), {}) for dim in range(index.dim()))
        else:
            indices.append(index)
    return _aten.index.Tensor, (args[0], indices, *args[2:])
