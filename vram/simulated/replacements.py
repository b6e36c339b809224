"""Functions that stand in for torch's inside a simulation: how they are made, put there, and taken back."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from vram.simulated.device import card_index

Places = dict[tuple[Any, str], Callable[..., Any]]  # by owner and name: what stands there inside


@contextmanager
def replaced(places: Places) -> Iterator[None]:
    """Inside, `places` stand in for what is there. Raises RuntimeError where this torch lacks one of them."""
    for owner, name in places:
        if not hasattr(owner, name):
            raise RuntimeError(
                f"simulated CUDA answers for {owner.__name__}.{name}, which torch {torch.__version__} lacks"
            )
    before = {place: getattr(*place) for place in places}
    own = {(owner, name): vars(owner)[name] for owner, name in places if name in vars(owner)}  # and not its base's
    imported = set(sys.modules)
    try:
        for (owner, name), replacement in places.items():
            setattr(owner, name, replacement)
        yield
    finally:
        for owner, name in places:
            if (owner, name) in own:
                setattr(owner, name, own[owner, name])
            else:
                delattr(owner, name)
        _take_back({id(replacement): before[place] for place, replacement in reversed(places.items())}, imported)


def _take_back(originals: Mapping[int, Any], imported: Collection[str]) -> None:
    """Put `originals`, by the id of what stood in, into modules that were imported inside and took those."""
    for module in [module for name, module in list(sys.modules.items()) if name not in imported]:
        namespace = getattr(module, "__dict__", {})
        for name in [name for name, value in list(namespace.items()) if id(value) in originals]:
            namespace[name] = originals[id(namespace[name])]


def always(value: Any) -> Callable[..., Any]:
    """A function that returns `value`, whatever it is passed."""
    return lambda *_, **__: value


def refuse(why: str) -> Callable[..., Any]:
    """A function that raises NotImplementedError with `why`."""

    def refusing(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(why)

    return refusing


def refused_class(own: Any, why: str) -> Any:
    """A subclass called as `own`, good for `isinstance`; to make one raises NotImplementedError with `why`."""
    return type(own.__name__, (own,), {"__new__": refuse(why)})


def of_the_card(answer: Callable[[], Any]) -> Callable[..., Any]:
    """A function of an optional device that calls `answer`; another card's index raises RuntimeError."""

    def of_a_device(device: Any = None) -> Any:
        card_index("cuda" if device is None else device)
        return answer()

    return of_a_device


def for_real(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` without any mode: on real tensors."""

    @functools.wraps(function)
    def real(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            return function(*args, **kwargs)

    return real
