"""The samples by which PyTorch tests its own operations, on both sides:

    python -m benchmarks.cardless -- -m benchmarks.cardless.samples [--output-folder ci/evidence] [OPERATION ...]

Needs expecttest, as PyTorch's own tests do. Each operation runs in a process of its own: where it calls a library that
the runtime lacks, only that one ends.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks.cardless import evidence
from benchmarks.cardless.operations import Figures, measured
from benchmarks.cardless.values import Values
from vram.cards import Card
from vram.simulated.context import SimulatedCuda

DTYPES = {"float32": torch.float32, "float16": torch.float16, "int64": torch.int64}
MOST = 14  # samples of an operation and dtype
_SECONDS = 120  # for an operation


def figures(operation: Any, within: Callable[[], AbstractContextManager[object]]) -> Iterator[Figures | str]:
    """The figures of each sample; or the error."""
    for dtype in DTYPES.values():
        if dtype in operation.dtypesIfCUDA:
            with within():
                torch.manual_seed(0)
                for sample, _ in zip(operation.sample_inputs("cuda", dtype), range(MOST), strict=False):
                    yield measured(lambda s=sample: lambda: operation(s.input, *s.args, **s.kwargs))


def both(operation: Any, card: Card) -> list[tuple[Figures | str, Figures | str]]:
    gc.collect()
    gc.disable()  # nothing that was before ends while a sample is measured
    theirs = list(figures(operation, Values))
    return list(zip(theirs, figures(operation, lambda: SimulatedCuda(card)), strict=True))


def apart(operation: Any, card: Card) -> list[list[Figures | str]] | None:
    """Both sides' figures, from a process of its own; None where it ended before it was through."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(_SECONDS)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        torch.cuda._is_in_bad_fork = lambda: False  # type: ignore[assignment]  # there is no card to be used twice
        with os.fdopen(writing, "w") as answer:
            json.dump(both(operation, card), answer)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else None


def compare(card: Card, folder: Path, names: list[str]) -> None:
    """Run both sides on the samples of `names`, or of all operations, print where they differ, and write it down."""
    from torch.testing._internal.common_methods_invocations import op_db  # only here: it needs expecttest

    warnings.simplefilter("ignore")
    started = time.monotonic()
    samples = equal = 0
    different: dict[str, Any] = {}
    refused: dict[str, Any] = {}
    without = []
    for operation in op_db:
        if names and operation.name not in names:
            continue
        name = ", ".join(filter(None, (operation.name, operation.variant_test_name)))
        pairs = apart(operation, card)
        if pairs is None:
            without.append(name)
            continue
        refusals = [ours for theirs, ours in pairs if isinstance(ours, str) and not isinstance(theirs, str)]
        if refusals:
            refused[name] = refusals[0]
        answered = [pair for pair in pairs if not any(isinstance(figures, str) for figures in pair)]
        unlike = [(theirs, ours) for theirs, ours in answered if theirs != ours]
        samples, equal = samples + len(answered), equal + len(answered) - len(unlike)
        if unlike:
            different[name] = worst(name, unlike)
    print(
        f"samples: {equal} of {samples} equal; refused: {len(refused)} operations; not run: {len(without)} operations"
    )
    path = evidence.path_of(folder, "samples", card)
    written = {"schema": 1, "card": card.name, "torch": str(torch.__version__), "samples": samples, "equal": equal}
    written |= {"different": different, "refused": refused, "not asked": without}
    path.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}, {time.monotonic() - started:.0f} s")


def worst(name: str, unlike: list[Any]) -> dict[str, Any]:
    """The pair of figures that differs most in peak bytes, also printed."""
    theirs, ours = max(unlike, key=lambda pair: abs(pair[0][0] - pair[1][0]))
    print(f"{name}: {len(unlike)} samples, as torch {theirs}, simulated {ours}", flush=True)
    return {"samples": len(unlike), "torch": theirs, "simulated": ours}


if __name__ == "__main__":
    its_card, options, parser = evidence.arguments("samples", "operations")
    if find_spec("expecttest") is None:
        parser.error("needs expecttest, as PyTorch's own tests do")
    compare(its_card, options.output_folder, options.operations)
