"""Finds KV caches of requests that are answered: kept, and read by no later request."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from vram.explanation.suggestions.growth import FoundGrowth, GrownLine, GrowthEvidence
from vram.replaying.collector import unfrozen

_CACHED = "KV cache"
_OWN_USES = 2  # of a storage: the tensor's, and that of its Python object


def cache_of_every_request(evidence: GrowthEvidence) -> Iterator[FoundGrowth]:
    """Lines whose growth is keys and values of transformers' cache objects of which nothing reads any in a lap of all
    samples, and that nothing else keeps."""
    lines = [line for line in evidence.lines if {evidence.category(one) for one in line.alive} == {_CACHED}]
    owners = _owners(evidence, lines)
    lines = [line for line in lines if all(id(one) in owners and owners[id(one)].alone for one in line.alive)]
    lap = evidence.lap_within(nullcontext()) if lines else None
    if lap is None or lap.recorded:  # a graph may keep them too, and not every PyTorch counts its references
        return
    read = {owner.cache for one, owner in owners.items() if one in lap.read}
    lines = [line for line in lines if not any(owners[id(one)].cache in read for one in line.alive)]
    kept = {owners[id(one)] for line in lines for one in line.alive}
    if len(kept) < 2:
        return
    kinds = " and ".join(sorted({owner.kind for owner in kept}))
    first = lines[0].alive[0]
    text = (
        f"let go of the {kinds} of a request that is answered ({first.caller or first.line}): {len(kept):,} are kept, "
        "and no later request reads one"
    )
    yield FoundGrowth(text, sum(line.rate for line in lines))


class _Owner(NamedTuple):
    """A cache object that has an allocation: its id and kind, and whether it alone keeps that."""

    cache: int
    kind: str
    alone: bool


def _owners(evidence: GrowthEvidence, lines: Sequence[GrownLine]) -> dict[int, _Owner]:
    """The cache of each allocation of `lines` that one has, by the allocation's id."""
    made = {id(one) for line in lines for one in line.alive}
    allocations = {storage._cdata: id(one) for storage, one in evidence.storages() if id(one) in made}
    found = {}
    for cache in _living_caches() if allocations else ():
        for layer in getattr(cache, "layers", ()):
            attributes = vars(layer)
            for name in attributes:
                address, alone = _kept(attributes, name)
                if address in allocations:
                    found[allocations[address]] = _Owner(id(cache), type(cache).__name__, alone)
    return found


def _living_caches() -> list[Any]:
    library = sys.modules.get("transformers.cache_utils")
    if library is None:
        return []
    with unfrozen():
        objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, library.Cache)}
    return [one for one in objects if type(one) in kinds]


def _kept(attributes: dict[str, Any], name: str) -> tuple[int, bool]:
    """The address of the storage of an attribute's tensor, and whether nothing else refers to either; (0, False) of
    anything else."""
    if not issubclass(type(attributes[name]), torch.Tensor):
        return 0, False
    alone = sys.getrefcount(attributes[name]) <= 2  # the attribute, and the argument of the count itself
    address: int = attributes[name].untyped_storage()._cdata
    return address, alone and torch._C._storage_Use_Count(address) == _OWN_USES
