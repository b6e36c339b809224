"""Tensor parallelism: a layer's attention heads are shared out over processes, which must still choose alike.

Each process sees its own heads only. Scores are summed over all of them in one order, so that every process has the
same bits, ties included; a first index is drawn by one process for all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def heads_group(projection: nn.Module) -> Any | None:
    """The process group over which the outputs of `projection` are shared out; None where this process has them all.

    Read off the placement of its weight, a DTensor under tensor parallelism. Raises ValueError where several groups
    share it.
    """
    if not torch.distributed.is_available():
        return None
    from torch.distributed.tensor import DTensor, Shard

    weight = getattr(projection, "weight", None)
    if not isinstance(weight, DTensor):
        return None
    mesh = weight.device_mesh
    shared = [dim for dim, placement in enumerate(weight.placements) if isinstance(placement, Shard)]
    shared = [dim for dim in shared if mesh.size(dim) > 1]
    if len(shared) > 1:
        raise ValueError(f"attention heads must be shared out over one dimension of the mesh, got {len(shared)}")
    return mesh.get_group(shared[0]) if shared else None


def summed_over_heads(scores: list[Tensor], heads: int, all_heads: int, group: Any | None) -> list[Tensor]:
    """`scores`, float32 vectors of this process's `heads` heads, summed over the `all_heads` of all processes.

    Raises ValueError where the heads of the other processes can't be known, or don't add up.
    """
    if heads == all_heads:
        return scores
    rule = f"scores need the attention of all {all_heads} heads"
    if group is None:
        raise ValueError(f"{rule}, got {heads} of them and no process group that has the others")
    # One message: all rows' scores, and at the end how many heads they are from.
    mine = torch.cat([*scores, scores[0].new_tensor([heads])])
    everyone = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(everyone, mine, group=group)
    # In the order of ranks, not by all_reduce: that adds parts of a tensor in different orders, which breaks ties.
    total = sum(everyone[1:], everyone[0])
    if int(total[-1]) != all_heads:
        raise ValueError(f"{rule}, got {int(total[-1])} from {len(everyone)} processes")
    return list(torch.split(total[:-1], [one.shape[0] for one in scores]))


def same_for_all(index: int, group: Any | None, device: torch.device) -> int:
    """`index` as the first process of `group` has it; without a group as it is."""
    if group is None:
        return index
    drawn = torch.tensor(index, device=device)
    torch.distributed.broadcast(drawn, src=torch.distributed.get_global_rank(group, 0), group=group)
    return int(drawn)
