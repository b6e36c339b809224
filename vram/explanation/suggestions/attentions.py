"""Finds attention maps that a model returns and that nobody reads: `output_attentions`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch.nn import Module

from vram.explanation.suggestions.evidence import Evidence, Found


def attentions_returned(evidence: Evidence) -> Iterator[Found]:
    """Maps in the `attentions` of a transformers output that nothing reads outside of the layer that made them, and the
    peak of the same sample without the flag."""
    maps = evidence.categories.attentions
    uses = [evidence.untouched(key) for key in maps]
    roots = {id(root): root for root in (known() for known in maps.values()) if root is not None}
    if evidence.uses.backward or any(use is None or use.outside for use in uses) or not maps.keys() & evidence.alive:
        return
    peak_bytes = evidence.peak_within(_without_flag(roots.values()))
    if peak_bytes is not None and roots:
        names = " and ".join(sorted({type(root).__name__ for root in roots.values()}))
        returned = f"it returns {len(maps):,} attention maps, and nobody reads them"
        text = f"call {names} without `output_attentions=True`: {returned}"
        yield Found(text, saves_bytes=evidence.curve.peak_bytes - peak_bytes)


@contextmanager
def _without_flag(roots: Iterable[Module]) -> Iterator[None]:
    """Call the models without the flag inside the block."""
    with ExitStack() as stack:
        for root in roots:
            stack.callback(root.register_forward_pre_hook(_unset, with_kwargs=True).remove)
        yield


def _unset(_: Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "output_attentions": False}
