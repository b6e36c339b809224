"""The samples by which PyTorch tests its own operations, forward and backward, on both sides:

    python -m benchmarks.cardless -- -m benchmarks.cardless.samples [--output-folder ci/evidence] [OPERATION ...]

Each direction has a file of its own. Samples are made on the CPU, so that both sides have the same values and strides.
Each side runs in a process of its own; where a sample calls a library that the runtime lacks, the process ends, and the
next one goes on after it.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import TestCase

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.cardless import evidence
from benchmarks.cardless.causes import cause_of
from benchmarks.cardless.operations import Figures, measured
from benchmarks.cardless.values import Values
from vram.cards import Card
from vram.simulated.context import SimulatedCuda

DTYPES = {"float32": torch.float32, "float16": torch.float16, "int64": torch.int64}
MOST = 14  # samples of an operation and dtype
DIRECTIONS = {"forward": "samples", "backward": "samples-backward"}  # and their kinds of evidence
_SECONDS = 120  # for a sample
_CARD, _CPU = torch.device("cuda", 0), torch.device("cpu")
Answer = Figures | str  # the figures, or the error
Key = tuple[str, str, int]  # direction, dtype, number of the sample
Within = Callable[[], AbstractContextManager[object]]
Sides = tuple[dict[Key, Answer], dict[Key, Answer]]  # torch's and the simulation's


def operations() -> list[Any]:
    """PyTorch's list of its operations. Their module asks for expecttest, and derives a class from its only one."""
    if "expecttest" not in sys.modules:
        sys.modules["expecttest"] = ModuleType("expecttest")
        sys.modules["expecttest"].TestCase = TestCase  # type: ignore[attr-defined]
    from torch.testing._internal.common_methods_invocations import op_db

    return list(op_db)


def name_of(operation: Any) -> str:
    """Its name and variant."""
    return ", ".join(filter(None, (operation.name, operation.variant_test_name)))


def samples(operation: Any, directions: Collection[str]) -> Iterator[tuple[Key, Any]]:
    """Samples on the CPU with their keys; the error in place of a sample that can't be made."""
    kinds = {"forward": operation.dtypesIfCUDA, "backward": operation.backward_dtypesIfCUDA}
    for direction in directions:
        backward = direction == "backward"
        for name, dtype in DTYPES.items():
            if dtype not in kinds[direction] or (backward and not (operation.supports_autograd and "float" in name)):
                continue
            torch.manual_seed(0)
            number = -1
            try:
                with torch.no_grad():  # as `sample_inputs`, which notes where each is made, and takes its time for it
                    made = islice(operation.sample_inputs_func(operation, "cpu", dtype, backward), MOST)
                    for number, sample in enumerate(made):
                        yield (direction, name, number), sample
            except Exception as error:  # of a kernel that the CPU lacks
                yield (direction, name, number + 1), f"{type(error).__name__}: {error}"


def answer(operation: Any, key: Key, sample: Any) -> Answer:
    """The figures of a sample on the card that is there."""
    if isinstance(sample, str):
        return sample
    try:
        placed = _placed(sample)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

    def run() -> Any:
        given, args, kwargs = placed
        return operation(given, *args, **kwargs)

    if key[0] == "forward":
        return measured(lambda: run)
    return measured_backward(lambda: sample.output_process_fn_grad(run()), tree_leaves(placed))


def _placed(sample: Any) -> Any:
    """Input and arguments of a sample on the card, with the strides that they have on the CPU."""
    storages: dict[int, Tensor] = {}

    def place(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _moved(value.detach(), storages).requires_grad_(value.requires_grad)
        return _CARD if value in (_CPU, "cpu") else value

    with torch.no_grad():
        return tree_map(
            lambda value: place(value) if isinstance(value, Tensor | torch.device | str) else value,
            (sample.input, tuple(sample.args), dict(sample.kwargs)),
        )


def _moved(tensor: Tensor, storages: dict[int, Tensor]) -> Tensor:
    if tensor.layout is not torch.strided or tensor.numel() * tensor.itemsize == tensor.untyped_storage().nbytes():
        return tensor.to(_CARD)
    storage = tensor.untyped_storage()
    if storage._cdata not in storages:
        with _disable_current_modes():
            whole = torch.empty(0, dtype=tensor.dtype).set_(storage)
        storages[storage._cdata] = whole.to(_CARD)
    return storages[storage._cdata].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).detach()


def measured_backward(run: Callable[[], Any], leaves: list[Any]) -> Answer:
    """Figures of a second forward and backward pass, or the error: requested bytes at the peak and kept (gradients),
    blocks at the peak, reserved bytes."""
    weights = [each for each in leaves if isinstance(each, Tensor) and each.requires_grad]
    try:
        outputs = _differentiable(run())
        gradients = [torch.ones_like(each, requires_grad=False) for each in outputs]
        torch.autograd.backward(outputs, gradients)
        del outputs
        for each in weights:
            each.grad = None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_stats()
        torch.autograd.backward(_differentiable(run()), gradients)
        after = torch.cuda.memory_stats()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    figures = (("requested_bytes", "peak"), ("requested_bytes", "current"), ("allocation", "peak"))
    peaks = [after[f"{name}.all.{which}"] - before[f"{name}.all.current"] for name, which in figures]
    return [*peaks, after["reserved_bytes.all.peak"] - before["reserved_bytes.all.current"]]


def _differentiable(result: Any) -> list[Tensor]:
    return [each for each in tree_leaves(result) if isinstance(each, Tensor) and each.requires_grad]


def answers(
    listed: list[Any], within: Within, done: int, directions: Collection[str] = tuple(DIRECTIONS)
) -> Iterator[list[Any]]:
    """Rows of one side: name and key of each sample, but the first `done`, and then both again with the answer."""
    gc.disable()  # nothing that was before ends while a sample is measured
    for operation in listed:
        gc.collect()
        made = list(samples(operation, directions))[done:]
        done = 0
        with within():
            for key, sample in made:
                yield [name_of(operation), key]
                yield [name_of(operation), key, answer(operation, key, sample)]


def in_child(rows: Callable[[], Iterator[list[Any]]]) -> Iterator[list[Any]]:
    """The rows from a process of its own; where it ended before it was through, one more with the reason alone."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            os.dup2(errors.fileno(), sys.stderr.fileno())
            torch.cuda._is_in_bad_fork = lambda: False  # type: ignore[assignment]  # no card is there to be used twice
            with os.fdopen(writing, "w") as written:
                for row in rows():
                    signal.alarm(_SECONDS)
                    print(json.dumps(row), file=written, flush=True)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as written:
            yield from (json.loads(line) for line in written if line.endswith("\n"))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        errors.seek(0)
        lines = [line for line in errors.read().decode(errors="replace").split("\n") if line.strip()]
    if status:
        yield [f"process ended ({status}): {lines[-1] if lines else ''}"]


def by_sample(listed: list[Any], within: Within) -> Iterator[tuple[str, Key, Answer]]:
    """The answers of one side; the reason for a sample that ended its process, and those after it from the next."""
    rest, done = listed, 0  # where to begin: samples of the first one of the rest that are done
    while True:
        error, begun = "", None
        for row in in_child(partial(answers, rest, within, done)):
            if len(row) == 1:
                error = row[0]
                continue
            name, (direction, dtype, number), *answered = row
            begun = None if answered else (name, (direction, dtype, number))
            if name != name_of(rest[0]):
                rest, done = rest[[name_of(each) for each in rest].index(name) :], 0
            if answered:
                done += 1
                yield name, (direction, dtype, number), answered[0]
        if not error:
            return
        if begun is None:
            raise RuntimeError(f"cardless: {name_of(rest[0])}, outside of its samples: {error}")
        done += 1
        yield *begun, error


def found_by_both(names: list[str], card: Card) -> dict[str, Sides]:
    """Both sides' answers by operation: of `names`, or of all."""
    listed = [each for each in operations() if not names or {each.name, name_of(each)} & set(names)]
    gc.collect()
    gc.freeze()  # no child goes through all of these again
    found: dict[str, Sides] = {name_of(operation): ({}, {}) for operation in listed}
    for side, within in enumerate((Values, partial(SimulatedCuda, card))):
        for name, key, answered in by_sample(listed, within):
            found[name][side][key] = answered
    for name, sides in found.items():
        show(name, *sides)
    return found


def compare(card: Card, folder: Path, names: list[str]) -> None:
    """Run both sides on the samples of `names`, or of all operations; print where they differ.

    Written down unless only some operations were asked for.
    """
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # in a process that forks
    found = found_by_both(names, card)
    for direction, kind in DIRECTIONS.items():
        written = evidence.begun(card) | record(direction, found)
        print("{}: {equal} of {samples} equal".format(direction, **written))
        if not names:
            path = evidence.path_of(folder, kind, card)
            evidence.write(path, written)
            print(f"written: {path}")


def _differing(direction: str, theirs: dict[Key, Answer], ours: dict[Key, Answer]) -> list[Key]:
    """Samples that both sides answered, each otherwise."""
    return [
        key for key in theirs if key[0] == direction and theirs[key] != ours[key] and _answered(theirs[key], ours[key])
    ]


def _answered(*answers: Answer) -> bool:
    return not any(isinstance(each, str) for each in answers)


def show(name: str, theirs: dict[Key, Answer], ours: dict[Key, Answer]) -> None:
    """Print how samples of one operation differ: the worst of each direction."""
    for direction in DIRECTIONS:
        if keys := _differing(direction, theirs, ours):
            print(f"{name}, {direction}: {_worst(keys, theirs, ours)}", flush=True)


def _worst(keys: list[Key], theirs: dict[Key, Answer], ours: dict[Key, Answer]) -> dict[str, Any]:
    """The pair of figures that differs most in its peak, and how many samples differ."""
    most = max(keys, key=lambda key: abs(int(theirs[key][0]) - int(ours[key][0])))
    return {"samples": len(keys), "torch": theirs[most], "simulated": ours[most]}


def record(direction: str, found: dict[str, Sides]) -> dict[str, Any]:
    """How many samples are equal, what differs by its cause, what is refused or did not run by the reason, and figures.

    Figures are torch's in the order of the samples, null where a side has none; the simulation's where they differ.
    """
    different, refused, not_run = (defaultdict[str, dict[str, Any]](dict) for _ in range(3))
    operations_: dict[str, Any] = {}
    answered = equal = 0
    for name, (theirs, ours) in found.items():
        differing = _differing(direction, theirs, ours)
        if differing:
            different[cause_of(name, direction)][name] = _worst(differing, theirs, ours)
        figures: dict[str, Any] = {}
        for key in [key for key in theirs if key[0] == direction]:
            both = _answered(theirs[key], ours[key])
            figures.setdefault(key[1], []).append(theirs[key] if both else None)
            if not both:
                group, reason = (not_run, theirs[key]) if isinstance(theirs[key], str) else (refused, ours[key])
                by_name = group[str(reason).split("\n")[0]]
                by_name[name] = by_name.get(name, 0) + 1
            answered, equal = answered + both, equal + (both and key not in differing)
        if differing:
            figures["simulated"] = {f"{key[1]}, {key[2]}": ours[key] for key in differing}
        if figures:
            operations_[name] = figures
    groups = {"different": different, "refused": refused, "not run": not_run}
    return {"direction": direction, "samples": answered, "equal": equal} | groups | {"operations": operations_}


def unlike_recorded(recorded: dict[str, Any], card: Card, names: Collection[str]) -> dict[str, Any]:
    """The simulation's figures, and those that the evidence has, of each sample of `names` for which they differ."""
    found = {}
    listed = [each for each in operations() if name_of(each) in names]
    for name, (direction, dtype, number), *given in answers(
        listed, partial(SimulatedCuda, card), 0, [recorded["direction"]]
    ):
        figures = recorded["operations"][name]
        expected = figures.get("simulated", {}).get(f"{dtype}, {number}", figures[dtype][number])
        if given and expected is not None and given[0] != expected:
            found[f"{name}, {direction}, {dtype}, {number}"] = given[0], expected
    return found


if __name__ == "__main__":
    its_card, options, _ = evidence.arguments("samples", "operations")
    compare(its_card, options.output_folder, options.operations)
