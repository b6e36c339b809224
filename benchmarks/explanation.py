"""The cost of an explanation beside its traced rerun: `python benchmarks/explanation.py [--objects 500000]`.

Three leaks in one process: eight lines that keep a tensor each, losses whose graphs have 200 operations, and what only
native code keeps. Bound: twice the rerun and one second. Then breakdowns of peaks, of small samples: right after the
replay, as a session makes them, and later. In CPU time of the process, which other processes change less than that of a
clock; breakdowns the least of 7 turns.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import vram
from vram.explanation import growth
from vram.explanation.peak import breakdown
from vram.replaying.loop import planned, record
from vram.replaying.rerunnable import rerunnable_of

_TURNS = 7
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


def chain(operations: int) -> Callable[[int], float]:
    """A step of so many small operations."""

    def step(_: int) -> float:
        hidden = torch.ones(64)
        for _ in range(operations):
            hidden = hidden * 1.01
        return float(hidden.sum())

    return step


def llama(forwards: int, tokens: int = 32, hidden: int = 64, layers: int = 2) -> Callable[[int], float]:
    """A step of so many forwards of a LLaMA."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    config = LlamaConfig(vocab_size=1024, num_attention_heads=8, **shape)
    model, ids = LlamaForCausalLM(config).eval(), torch.arange(tokens).view(1, tokens)

    def step(_: int) -> float:
        with torch.no_grad():
            return sum(float(model(input_ids=ids).logits[0, -1, 0]) for _ in range(forwards))

    return step


def breakdowns() -> None:
    """Cost of breaking down a peak: right after its replay, as a session does, and later; beside one sample, bare and
    as a replay measures it."""
    print(f"{'sample':22}{'bare':>10}{'measured':>10}{'breakdown':>11}{'later':>10}")
    steps = {"10 operations": chain(10), "1,000 operations": chain(1000)}
    steps |= {f"tiny LLaMA, {count} runs": llama(count) for count in (1, 20)}
    steps |= {"prefill of 671": llama(1, tokens=671, hidden=512, layers=8)}
    for name, step in steps.items():
        print(f"{name:22}" + "".join(f"{1000 * seconds:8.1f}ms" for seconds in beside_breakdown(step)))


def beside_breakdown(step: Callable[[int], object]) -> list[float]:
    """CPU seconds of a sample, of one that is measured, of the breakdown right after the replay, and of a later one."""
    seconds: list[list[float]] = [[], [], [], []]
    for _ in range(_TURNS):
        seconds[0].append(_cpu_seconds(lambda: step(0)))
        with vram.meters.default_meter("cpu") as meter, meter.watching():
            seconds[1].append(_cpu_seconds(lambda: step(0)))
        plan = planned(step, [0], laps=1, warmup_laps=0, meters=None, name=None)
        recording = record(plan, lambda made: seconds[2].append(_cpu_seconds(lambda: breakdown(made))))
        seconds[3].append(_cpu_seconds(partial(breakdown, recording)))
    return list(map(min, seconds))


def _cpu_seconds(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


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
