"""References to steps and samples: they keep nothing alive, and work for as long as somebody else does."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from vram.replaying.weakly import Gone, weakly


class Model:
    def answer(self, sample: int, times: int = 1) -> int:
        return sample * times


def steps(model: Model) -> list[Callable[[int], object]]:
    """The kinds of steps there are, all by one model."""

    def inner(sample: int, *, times: int = 2) -> int:
        return model.answer(sample, times)

    def outer(sample: int) -> int:
        return inner(sample)

    return [
        lambda sample: model.answer(sample, 2),
        inner,
        outer,
        lambda sample, model=model: model.answer(sample, 2),  # type: ignore[misc]
        functools.partial(model.answer, times=2),
        functools.partial(inner),
    ]


@pytest.mark.parametrize("kind", range(6))
def test_a_step_is_known_as_long_as_its_model(kind: int) -> None:
    """Though the function itself has ended; with the model, which a reference does not keep, it is gone."""
    model = Model()
    reference = weakly(steps(model)[kind])
    gc.collect()

    assert reference()(21) == 42

    alive = weakref.ref(model)
    del model
    assert alive() is None
    with pytest.raises(Gone):
        reference()


def test_a_method_and_a_function_of_a_module() -> None:
    """Neither needs anything else."""
    model = Model()
    assert weakly(model.answer)()(3) == 3
    assert weakly(steps)().__qualname__ == "steps"


def test_samples_of_every_kind() -> None:
    """Numbers and text are kept, objects in containers are not."""
    model = Model()
    samples: list[Any] = [1, "two", [3, 4], {"model": model}, (model, None), range(5)]
    reference = weakly(samples)
    assert reference() == samples
    del samples, model
    with pytest.raises(Gone):
        reference()
    assert weakly([1, 2, (3, "four")])() == [1, 2, (3, "four")]


def test_what_refers_to_itself_is_gone() -> None:
    """A function that calls itself could be taken apart for ever."""

    def down(number: int) -> int:
        return number and down(number - 1)

    with pytest.raises(Gone):
        weakly(down)()
