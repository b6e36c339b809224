"""The cost of an explanation beside its traced rerun: `python benchmarks/explanation.py [--objects 500000]`.

Three leaks in one process: eight lines that keep a tensor each, losses whose graphs have 200 operations, and what only
native code keeps. Bound: twice the rerun and one second. Then breakdowns of peaks, of small samples of 10 and of 1,000
operations, beside the sample itself. In CPU seconds of the process, which other processes change less than those of a
clock.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable
from typing import Any

import torch

import vram
from vram.explanation import growth
from vram.explanation.peak import breakdown
from vram.replaying.rerunnable import rerunnable_of

KEPT: list[Any] = []
WEIGHT = torch.ones(64, requires_grad=True)


def eight_lines(_: int) -> None:
    KEPT.append([torch.zeros(64), torch.ones(64), torch.full((64,), 2.0), torch.arange(64.0)])
    KEPT.append({"a": torch.eye(8), "b": torch.empty(64).fill_(1), "c": torch.linspace(0, 1, 64), "d": torch.rand(64)})


def losses(_: int) -> None:
    hidden = WEIGHT
    for _ in range(100):
        hidden = (hidden * 1.01).tanh()
    KEPT.append(hidden.sum())


def native_code(_: int) -> None:
    kept = [torch.zeros(64)]
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))


def timed(step: Callable[[int], None]) -> tuple[float, float, growth.Explanation]:
    """CPU seconds of the traced rerun and of the whole explanation, and the explanation."""
    recording = vram.replay(step, range(20))
    rerunnable = rerunnable_of(recording)
    assert rerunnable is not None
    own, seconds = growth._Trace.run, []

    def run(trace: growth._Trace) -> None:
        begin = time.process_time()
        own(trace)
        seconds.append(time.process_time() - begin)

    growth._Trace.run = run  # type: ignore[method-assign]
    try:
        begin = time.process_time()
        explanation = growth.explain(rerunnable, peak=False)
        return seconds[0], time.process_time() - begin, explanation
    finally:
        growth._Trace.run = own  # type: ignore[method-assign]


def breakdowns() -> None:
    """Cost of breaking down a peak, beside its sample."""
    print(f"{'operations':14}{'sample':>9}{'breakdown':>11}")
    for operations in (10, 1000):

        def step(_: int, operations: int = operations) -> float:
            hidden = torch.ones(64)
            for _ in range(operations):
                hidden = hidden * 1.01
            return float(hidden.sum())

        recording = vram.replay(step, [0])
        begin = time.process_time()
        for _ in range(10):
            step(0)
        between = time.process_time()
        breakdown(recording)
        print(f"{operations:<14,}{(between - begin) / 10:8.4f}s{time.process_time() - between:10.3f}s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=0, help="further objects in the process, two in each list")
    ballast = [[(), ()] for _ in range(parser.parse_args().objects)]
    print(f"{'leak':14}{'rerun':>9}{'whole':>9}{'bound':>9}   holder of the first line")
    for step in (eight_lines, losses, native_code):
        rerun, whole, explanation = timed(step)
        holder = explanation.lines[0].holder if explanation.lines else explanation.note
        print(f"{step.__name__:14}{rerun:8.2f}s{whole:8.2f}s{2 * rerun + 1:8.2f}s   {holder[:100]}")
        KEPT.clear()
    breakdowns()
    del ballast


if __name__ == "__main__":
    main()
