"""The step and the samples behind a recording, kept for as long as a check may ask for them to be run again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vram.recording import Recording
from vram.replaying.weakly import Gone, Reference, weakly


@dataclass(frozen=True, eq=False)
class Rerunnable:
    """Enough to run a recording's samples again, on the device it was measured on ("cpu", "cuda:1")."""

    step: Callable[[Any], object]
    samples: list[Any]
    device: str


@dataclass(frozen=True, eq=False)
class _Loosened:
    """The same, with nothing kept alive but the samples; they neither where `samples` is a reference."""

    step: Reference
    samples: list[Any] | Reference
    device: str

    def found(self) -> Rerunnable | None:
        try:
            samples = self.samples if isinstance(self.samples, list) else self.samples()
            return Rerunnable(self.step(), samples, self.device)
        except Gone:
            return None


def remember(recording: Recording, rerunnable: Rerunnable) -> None:
    """Keep `rerunnable` as long as `recording` lives, or until it is forgotten."""
    # On the recording itself, not in a table of ours: what a step holds may hold the recording, and both then end.
    vars(recording)["_rerunnable"] = rerunnable


def rerunnable_of(recording: Recording) -> Rerunnable | None:
    """The step and the samples of `recording`; None where `replay` did not make it, or they are gone."""
    kept = vars(recording).get("_rerunnable")
    return kept.found() if isinstance(kept, _Loosened) else kept


def loosen(recording: Recording, *, samples: bool = True) -> None:
    """Let go of the step of `recording`, and of its samples; both are known for as long as somebody else keeps them.

    With `samples=False` the samples are kept, until this is called again.
    """
    kept = vars(recording).get("_rerunnable")
    if kept is None:
        return
    step = kept.step if isinstance(kept, _Loosened) else weakly(kept.step)
    loose = weakly(kept.samples) if samples and isinstance(kept.samples, list) else kept.samples
    vars(recording)["_rerunnable"] = _Loosened(step, loose, kept.device)


def forget(recording: Recording) -> None:
    """Let go of the step and the samples of `recording`."""
    vars(recording).pop("_rerunnable", None)


def step_name(step: Callable[..., Any]) -> str:
    """The step's own qualified name."""
    return getattr(step, "__qualname__", None) or type(step).__qualname__


def name_of(step: Callable[..., Any]) -> str:
    """The name of a recording of `step` that was given none: "test_stable.<lambda>"."""
    return step_name(step).replace(".<locals>", "")
