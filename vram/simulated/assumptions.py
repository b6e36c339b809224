"""Values that a simulation assumes where a run would choose by activations, and which reads depend on them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from vram.frames import Frame, frame_here
from vram.simulated.by_tensor import ByStorage
from vram.simulated.operations import tensors, written_arguments

Assumption = tuple[str, str]  # in words, and the line that made it
_FINITE = "all activations are finite"
_VALID = "values are valid where torch.distributions checks them"
_BEAM_SEARCH = ("transformers/generation/utils.py", "GenerationMixin._beam_search")
# Functions of libraries that read what depends on activations: the end of their file and their name, and the value.
_READERS: dict[tuple[str, str], tuple[bool | float, str]] = {
    _BEAM_SEARCH: (True, "beam search runs to its length"),
    ("transformers/generation/stopping_criteria.py", "ConfidenceCriteria.__call__"): (
        1.0,
        "the assistant model is confident of every token",
    ),
}
# Beams that were finished, then those of this step: the last are taken, which are as long as the search was.
_TAKES_LAST = ("transformers/generation/utils.py", "GenerationMixin._update_finished_beams")
# Functions of optimizers that divide by the norms of weights and updates, which no size depends on.
_BY_NORMS = frozenset(
    getattr(torch.optim._adafactor, name).__code__
    for name in ("_single_tensor_adafactor", "_multi_tensor_adafactor")
    if hasattr(getattr(torch.optim, "_adafactor", None), name)
)
FINITENESS: dict[Any, bool] = {
    **dict.fromkeys((torch.isfinite, torch.Tensor.isfinite), True),
    **dict.fromkeys((torch.isinf, torch.Tensor.isinf, torch.isnan, torch.Tensor.isnan), False),
}
_ALL_TRUE = "aten::_is_all_true"
_SAME, _NOT = ("aten::all", "aten::any"), ("aten::logical_not", "aten::bitwise_not")
_AND, _OR = ("aten::logical_and", "aten::bitwise_and"), ("aten::logical_or", "aten::bitwise_or")


class Assumptions:
    """Which values are assumed, and which tensors of any size are assumed true, or false, throughout.

    `note` is called with the words and the line of an assumption once something reads a value that follows from it.
    """

    def __init__(self, note: Callable[[str, str], None]) -> None:
        self._note = note
        self._of_values = ByStorage()  # by the storage of a value: what it follows from
        self._uniform = ByStorage()  # by the storage of a fake tensor: True or False, and what that follows from

    def make(self, value: Tensor, words: str) -> None:
        """`value` is assumed, by the operation that runs."""
        self._of_values.put(value, frozenset({(words, str(frame_here()))}))

    def takes_last(self) -> bool:
        """Whether the function that runs takes the last of what it chooses from, where others take the first."""
        return _is_in(frame_here(), _TAKES_LAST)

    def follow(self, values: Iterable[Tensor], results: Iterable[Tensor]) -> None:
        """`results` were computed from `values`."""
        if self._of_values and (sources := self._sources(values)):
            for result in results:
                self._of_values.put(result, sources | (self._of_values.get(result) or frozenset()))

    def read(self, values: Iterable[Tensor]) -> None:
        """A program reads `values`: note what they follow from."""
        for words, line in sorted(self._sources(values)):
            self._note(words, line)

    def read_unknown(self) -> bool | float | None:
        """The value that is assumed for the function that reads one which nobody knows; None for any other."""
        frame = frame_here()
        if _steps_by_norms():
            self._note("norms that an optimizer divides by are 1", str(frame))
            return 1.0
        for place, (value, words) in _READERS.items():
            if _is_in(frame, place) and (place != _BEAM_SEARCH or _last_beams_are_known()):
                self._note(words, str(frame))
                return value
        return None

    def _sources(self, values: Iterable[Tensor]) -> frozenset[Assumption]:
        return frozenset[Assumption]().union(*(self._of_values.get(value) or () for value in values))

    def finite(self, tensor: Tensor, answer: bool) -> None:
        """`tensor` says of unknown activations whether they are finite: `answer`, throughout."""
        self._uniform.put(tensor, (answer, frozenset({(_FINITE, str(frame_here()))})))

    def written(self, func: Any, args: Any, kwargs: Any) -> None:
        """An operation writes into tensors: they are not the same throughout any more."""
        if self._uniform:
            for position, name in written_arguments(func):
                for tensor in tensors(args[position] if position < len(args) else kwargs.get(name)):
                    self._uniform.drop(tensor)

    def uniform_value(
        self, func: Any, args: Any, result: Tensor, known: Callable[[Tensor], Tensor | None], most_elements: int
    ) -> Tensor | None:
        """The value of a result that follows from a few true or false operands; None where it does not.

        A result of more than `most_elements` is noted instead.
        """
        name = func._schema.name
        if result.dtype != torch.bool or not result.numel():
            return None
        if name == _ALL_TRUE:
            answer: bool | None = True
            sources = frozenset({(_VALID, str(frame_here()))})
        elif name in _NAMES:
            operands = [self._answer(each, known) for each in args[: 2 if name in _AND + _OR else 1]]
            answer = _combined(name, [each for each, _ in operands])
            deciding = [each for each in operands if name not in _AND + _OR or each[0] == answer] or operands
            sources = frozenset[Assumption]().union(*(each for _, each in deciding))
        else:
            return None
        if answer is None:
            return None
        if result.numel() > most_elements:
            self._uniform.put(result, (answer, sources))
            return None
        value = torch.full(result.shape, answer, device="cpu")
        if sources:
            self._of_values.put(value, sources)
        return value

    def _answer(
        self, operand: Any, known: Callable[[Tensor], Tensor | None]
    ) -> tuple[bool | None, frozenset[Assumption]]:
        """Whether an operand is true, or false, throughout, and what that follows from; None where it is neither."""
        if not isinstance(operand, Tensor):
            return (operand if isinstance(operand, bool) else None), frozenset()
        if (uniform := self._uniform.get(operand)) is not None:
            answer, sources = uniform
            return answer, sources
        value = known(operand)
        if value is None or value.dtype != torch.bool or not value.numel():
            return None, frozenset()
        throughout = True if bool(value.all()) else None if bool(value.any()) else False
        return throughout, self._sources([value])


def _last_beams_are_known() -> bool:
    """Whether transformers still chooses beams where `takes_last` expects it: else answers would end too soon."""
    module, (_, function) = sys.modules.get("transformers.generation.utils"), _TAKES_LAST
    kind, _, name = function.partition(".")
    return hasattr(getattr(module, kind, None), name)


def _steps_by_norms() -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code not in _BY_NORMS:
        frame = frame.f_back
    return frame is not None


def _is_in(frame: Frame | None, place: tuple[str, str]) -> bool:
    end, function = place
    return frame is not None and frame.name == function and frame.filename.replace("\\", "/").endswith(end)


_NAMES = _SAME + _NOT + _AND + _OR


def _combined(name: str, answers: list[bool | None]) -> bool | None:
    if name in _AND + _OR:
        decides = name in _OR  # one operand alone
        return decides if decides in answers else None if None in answers else not decides
    return (not answers[0]) if name in _NOT and answers[0] is not None else answers[0]
