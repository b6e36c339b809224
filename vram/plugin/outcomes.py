"""How a test ends: which errors are skips, which failures are memory's, and where they are raised."""

from __future__ import annotations

import inspect
import types
from typing import Any

import pytest

from vram.errors import Inconclusive, NotRecorded, Undecided
from vram.escaping import shown

# Errors of a torch without CUDA, of one without a driver, and of one without a GPU.
_NO_GPU = ("Torch not compiled with CUDA enabled", "Found no NVIDIA driver", "No CUDA GPUs are available")
_OUTSIDE = (
    "The simulated card is there inside `with vram.on_device():` and in the steps of `vram.replay` alone: make and use "
    "what is on it there."
)


def soften(report: pytest.TestReport, error: BaseException | None, *, undecided_skips: bool, new_fails: bool) -> None:
    """Make a failure a skip with its reason where it is inconclusive, or undecided and the session says so.

    What has no budget or base yet is inconclusive too, unless the session fails it.
    """
    if new_fails and isinstance(error, NotRecorded):
        return
    undecided = isinstance(error, Undecided) and undecided_skips
    if report.failed and (undecided or isinstance(error, Inconclusive)):
        path, line, _ = report.location
        report.outcome = "skipped"
        kind = "undecided" if undecided else "inconclusive"
        text = str(error) if undecided else shown(str(error))  # an explanation has lines
        report.longrepr = (path, (line or 0) + 1, f"Skipped: {kind}: {text}")


def explain_missing_gpu(report: pytest.TestReport, error: BaseException | None) -> None:
    """Say where the simulated card is, for code that looked for a real one."""
    if report.failed and any(words in str(error) for words in _NO_GPU):
        report.sections.append(("vram", _OUTSIDE))


def is_ours(error: BaseException | None) -> bool:
    """True where a check of this plugin failed the test."""
    return isinstance(error, AssertionError | NotRecorded) and type(error).__module__.startswith("vram.")


def is_expected(report: pytest.TestReport) -> bool:
    """True where the test failed as its xfail mark says."""
    return report.skipped and hasattr(report, "wasxfail")


def raise_in(item: pytest.Item, error: Exception) -> None:
    """Raise `error` from the line where the test is defined: pytest shows that, and none of our own code."""
    code: Any = getattr(inspect.unwrap(getattr(item, "obj", raise_in)), "__code__", None)
    if code is None:
        raise error
    place = compile("raise error", code.co_filename, "exec").replace(co_firstlineno=code.co_firstlineno)
    types.FunctionType(place, {"error": error})()
