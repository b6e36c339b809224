"""On a CUDA card: what the simulation says beside what the card does, and what HiMAP saves. `ci/gpu` runs it.

Peaks are `torch.cuda.max_memory_allocated` and `max_memory_reserved` of one answer, with an emptied cache before it.
Both sides run the same code. Where they differ, the evidence says why: which kernel attention ran, and which sizes one
side allocated more often than the other, with a line. `--rehearse` puts a second simulation in the card's place, to try
the rest without one.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from torch.nn.attention import SDPBackend

from llava.answering import Answerer
from llava.builder import load_pretrained_model
from llava.modes import MODES, set_mode
from llava.questions import embedded_questions
from vram.cards import Card, find_card
from vram.explanation.allocations import Describing
from vram.frames import Frame, telling_frame
from vram.simulated.allocator import Block
from vram.simulated.context import SimulatedCuda
from vram.simulated.kernels.attention import kernel
from vram.units import format_bytes

ATTENTIONS = ("sdpa", "eager")
TOKENS = {"prefill": 1, "4 tokens": 4}
ROUNDS = 7
Figures = dict[str, dict[str, int]]  # by "attention, mode, what": allocated and reserved, bytes


@dataclass(frozen=True)
class Scope:
    """Measurements: answers of one model, with each of the attentions, in each of the modes."""

    model: str
    attentions: Sequence[str] = ATTENTIONS
    modes: Sequence[str] = tuple(MODES)


def peaks(scope: Scope, attention: str) -> Figures:
    """Peaks of the weights and of one answer in each mode, on the card that `torch.cuda` shows, real or simulated."""
    loaded = load_pretrained_model(scope.model, device="cuda:0", attn_implementation=attention)
    tokenizer, model, processor, _ = loaded
    question = next(each for each in embedded_questions(20) if each.image is not None)
    figures: Figures = {}

    def note(what: str) -> None:
        both = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
        figures[f"{attention}, {what}"] = both

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    note("weights")
    for mode in scope.modes:
        set_mode(model, mode)
        for what, tokens in TOKENS.items():
            answerer = Answerer(tokenizer, model, processor, max_new_tokens=tokens, min_new_tokens=tokens)
            answerer.answer(question)  # what happens only once happens here, unmeasured
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            answerer.answer(question)
            note(f"{mode}, {what}")
    return figures


def clear_workspaces() -> None:
    """Drop cuBLAS's workspaces, which outlive their model: the next one begins with none, as a simulation does."""
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)  # not in a torch without CUDA
    if clear is not None:
        clear()


def all_peaks(scope: Scope, card: Callable[[], AbstractContextManager[object]]) -> Figures:
    figures: Figures = {}
    for attention in scope.attentions:
        with card():
            figures |= peaks(scope, attention)
            gc.collect()
            clear_workspaces()
            torch.cuda.empty_cache()
    return figures


class Allocations:
    """Allocations inside `with`, on the card or on a simulated one: `sizes` in bytes, each with its lines."""

    def __init__(self, cuda: SimulatedCuda | None) -> None:
        self._cuda = cuda
        self.sizes: dict[int, list[str]] = {}

    def __enter__(self) -> Self:
        if self._cuda is None:
            torch.cuda.memory._record_memory_history("all", context="alloc", stacks="python", max_entries=200_000)
        else:
            self._cuda.describe = Describing()
            self._cuda.allocator.observer = self._note
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._cuda is None:
            for entry in torch.cuda.memory._snapshot()["device_traces"][0]:
                if entry["action"] == "alloc":
                    frames = [Frame(each["filename"], each["line"], each["name"]) for each in entry.get("frames", ())]
                    self.sizes.setdefault(entry["size"], []).append(str(telling_frame(frames)))
            torch.cuda.memory._record_memory_history(None)
        else:
            self._cuda.describe = self._cuda.allocator.observer = None

    def _note(self, action: str, block: Block | None) -> None:
        if action == "malloc" and block is not None:
            line = f"{block.tag.op}, {block.tag.line}" if block.tag else "cuBLAS"
            self.sizes.setdefault(block.requested, []).append(line)


def allocations(scope: Scope, cuda: SimulatedCuda | None) -> dict[str, dict[int, list[str]]]:
    """Allocations of an answer of 2 tokens that is not the first, by "attention, mode"."""
    sizes = {}
    for attention in scope.attentions:
        with cuda or nullcontext():
            loaded = load_pretrained_model(scope.model, device="cuda:0", attn_implementation=attention)
            tokenizer, model, processor, _ = loaded
            question = next(each for each in embedded_questions(20) if each.image is not None)
            answerer = Answerer(tokenizer, model, processor, max_new_tokens=2, min_new_tokens=2)
            for mode in ("baseline", "himap"):
                set_mode(model, mode)
                answerer.answer(question)
                with Allocations(cuda) as allocated:
                    answerer.answer(question)
                sizes[f"{attention}, {mode}"] = allocated.sizes
            del loaded, tokenizer, model, processor, answerer
            gc.collect()
    return sizes


def differences(
    card: Mapping[str, Mapping[int, list[str]]], simulated: Mapping[str, Mapping[int, list[str]]]
) -> list[dict[str, Any]]:
    """Sizes that one side allocated more often, the most bytes first, at most ten for each "attention, mode"."""
    rows = []
    for what, measured in card.items():
        predicted = simulated[what]
        unequal = [
            {"what": what, "bytes": size, "card": len(here), "simulated": len(there), "line": (here or there)[-1]}
            for size in measured.keys() | predicted.keys()
            if len(here := measured.get(size, [])) != len(there := predicted.get(size, []))
        ]
        rows += sorted(unequal, key=lambda row: -row["bytes"] * abs(row["card"] - row["simulated"]))[:10]
    return rows


# Query heads, key heads, queries, keys, head size, dtype, mask, causal: LLaVA's calls, and others.
KERNELS: dict[str, tuple[int, int, int, int, int, torch.dtype, str, bool]] = {
    "prefill": (32, 32, 627, 627, 128, torch.float16, "", True),
    "decode": (32, 32, 1, 628, 128, torch.float16, "", False),
    "vision": (16, 16, 577, 577, 64, torch.float16, "", False),
    "padded prefill": (32, 32, 627, 627, 128, torch.float16, "boolean", False),
    "padded decode": (32, 32, 1, 628, 128, torch.float16, "boolean", False),
    "mask of numbers": (32, 32, 627, 627, 128, torch.float16, "numbers", False),
    "float32": (32, 32, 627, 627, 128, torch.float32, "", True),
    "grouped heads": (32, 8, 627, 627, 128, torch.float16, "", True),
    "grouped heads, padded": (32, 8, 627, 627, 128, torch.float16, "boolean", False),
    "odd heads": (4, 4, 64, 64, 20, torch.float16, "", False),
    "odd heads, padded": (4, 4, 64, 64, 20, torch.float16, "boolean", False),
    "large heads": (4, 4, 64, 64, 256, torch.float16, "", False),
    "causal, not square": (4, 4, 8, 64, 64, torch.float16, "", True),
    "one key": (4, 4, 1, 1, 64, torch.float16, "", False),
}


def kernels(capability: tuple[int, int]) -> list[dict[str, str]]:
    """Which kernel torch chooses on the card for scaled dot-product attention, beside the one the simulation takes."""
    rows = []
    for what, (heads, key_heads, queries, keys, size, dtype, masked, causal) in KERNELS.items():
        q = torch.zeros(2, heads, queries, size, dtype=dtype, device="cuda:0")
        k = torch.zeros(2, key_heads, keys, size, dtype=dtype, device="cuda:0")
        kind = {"boolean": torch.bool, "numbers": dtype}.get(masked)
        mask = None if kind is None else torch.ones(2, 1, queries, keys, dtype=kind, device="cuda:0")
        grouped = heads != key_heads
        chosen = torch._fused_sdp_choice(q, k, k, mask, 0.0, causal, enable_gqa=grouped)
        predicted = kernel(capability, q, k, k, mask, is_causal=causal, grouped=grouped)
        rows.append({"what": what, "predicted": predicted.name, "measured": SDPBackend(chosen).name})
    return rows


def compared(predicted: Figures, measured: Figures) -> list[dict[str, Any]]:
    """One row a figure: both sides' bytes, and the error as a share of the measured."""
    return [
        {
            "what": what,
            "figure": figure,
            "predicted_bytes": predicted[what][figure],
            "measured_bytes": n_bytes,
            "error": predicted[what][figure] / n_bytes - 1,
        }
        for what, figures in measured.items()
        for figure, n_bytes in figures.items()
    ]


def times(model_name: str) -> dict[str, dict[str, float]]:
    """Median seconds of answers of 1 and of 32 tokens, baseline and HiMAP taking turns, and their ratio."""
    tokenizer, model, processor, _ = load_pretrained_model(model_name, device="cuda:0")
    question = next(each for each in embedded_questions(20) if each.image is not None)
    by_tokens = {}
    for tokens in (1, 32):
        answerer = Answerer(tokenizer, model, processor, max_new_tokens=tokens, min_new_tokens=tokens)
        taken: dict[str, list[float]] = {"baseline": [], "himap": []}
        for turn in range(ROUNDS + 2):
            for mode, seconds in taken.items():
                set_mode(model, mode)
                torch.cuda.synchronize()
                started = time.perf_counter()
                answerer.answer(question)
                torch.cuda.synchronize()
                if turn >= 2:  # before that it is warm-up
                    seconds.append(time.perf_counter() - started)
        medians = {mode: statistics.median(seconds) for mode, seconds in taken.items()}
        by_tokens[f"{tokens} tokens"] = {**medians, "ratio": medians["himap"] / medians["baseline"]}
    return by_tokens


def card_here() -> Card:
    card = torch.cuda.get_device_properties(0)
    return Card(card.name, card.total_memory, (card.major, card.minor), multiprocessors=card.multi_processor_count)


def context_here() -> int:
    """Bytes in use on the card beside PyTorch's segments: the CUDA context, where this process is alone on it."""
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return total_bytes - free_bytes - torch.cuda.memory_reserved()


def judged(memory: Path | None) -> list[dict[str, Any]]:
    """Each mode of the suite's report, without its readings."""
    if memory is None:
        return []
    kept = ("mode", "laps", "samples", "verdict", "bytes_per_sample", "peak_bytes", "seconds", "absent")
    return [
        {key: mode[key] for key in kept}
        | {"channels": {name: channel["verdict"] for name, channel in mode["channels"].items()}}
        for mode in json.loads(memory.read_text(encoding="utf-8"))["modes"]
    ]


def show(part: str, rows: Any) -> None:
    """Print a part of the evidence for people."""
    if part == "kernels":
        for row in rows:
            if row["predicted"] != row["measured"]:
                print(f"attention, {row['what']}: {row['predicted']} predicted, {row['measured']} measured")
    elif part == "peaks":
        for row in rows:
            predicted, measured = (format_bytes(row[f"{side}_bytes"]) for side in ("predicted", "measured"))
            sides = f"{predicted:>11} predicted {measured:>11} measured {row['error']:+.3%}"
            print(f"{row['what']:<34}{row['figure']:<11}{sides}")
    elif part == "differences":
        for row in rows:
            times = f"{row['card']} x on the card, {row['simulated']} x simulated"
            print(f"{row['what']}: {format_bytes(row['bytes'])} {times}: {row['line']}")
    elif part == "judged":
        for mode in rows:
            channels = ", ".join(f"{name} {verdict}" for name, verdict in mode["channels"].items())
            print(f"{mode['mode']}: {mode['verdict']}, {mode['laps']} x {mode['samples']} runs; {channels}")
    elif part == "seconds":
        for what, taken in rows.items():
            print(f"{what}: baseline {taken['baseline']:.4f} s, HiMAP {taken['himap']:.4f} s, {taken['ratio']:.2f} x")


class Evidence:
    """The evidence file, written anew with each part: a later failure leaves the parts before it."""

    def __init__(self, folder: Path, card: Card, model: str, *, rehearsal: bool) -> None:
        name = re.sub(r"[^\w.]+", "-", f"{card.name}-torch{torch.__version__}")
        self.path = folder / f"{name}.json"
        self._parts: dict[str, Any] = {
            "schema": 1,
            "rehearsal": rehearsal,
            "card": asdict(card),
            "environment": {
                "torch": str(torch.__version__),
                "transformers": transformers.__version__,
                "cuda": torch.version.cuda,
                "cudnn": torch.backends.cudnn.version(),
                "python": sys.version.split()[0],
            },
            "model": model,
        }

    def keep(self, part: str, rows: Any) -> None:
        """Add a part, write the file and print the part."""
        self._parts[part] = rows
        self.path.write_text(json.dumps(self._parts, indent=1) + "\n", encoding="utf-8")
        show(part, rows)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether there is CUDA")
    parser.add_argument("--model", default="7b")
    parser.add_argument("--memory", type=Path, help="the suite's report")
    parser.add_argument("--output-folder", type=Path, default=Path("ci/evidence"))
    parser.add_argument("--rehearse", metavar="CARD", help="no GPU: a second simulation, of this card, in its place")
    parser.add_argument("--attentions", nargs="+", choices=ATTENTIONS, default=ATTENTIONS)
    parser.add_argument("--modes", nargs="+", choices=tuple(MODES), default=tuple(MODES))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0, or 2 where there is no CUDA."""
    options = parse(arguments)
    if not torch.cuda.is_available() and not options.rehearse:
        print("ci/gpu: error: needs a CUDA device, and torch sees none", file=sys.stderr)
        return 2
    if options.check:
        return 0
    rehearsed = options.rehearse is not None
    card = find_card(options.rehearse) if rehearsed else card_here()
    scope = Scope(options.model, options.attentions, options.modes)
    evidence = Evidence(options.output_folder, card, options.model, rehearsal=rehearsed)

    measured = all_peaks(scope, lambda: SimulatedCuda(card) if rehearsed else nullcontext())
    evidence.keep("measured", measured)
    evidence.keep("context_bytes", None if rehearsed else context_here())
    evidence.keep("seconds", {} if rehearsed else times(options.model))
    evidence.keep("judged", judged(options.memory))
    evidence.keep("peaks", compared(all_peaks(scope, lambda: SimulatedCuda(card)), measured))
    evidence.keep("kernels", [] if rehearsed else kernels(card.compute_capability))
    measured_sizes = allocations(scope, SimulatedCuda(card) if rehearsed else None)
    evidence.keep("differences", differences(measured_sizes, allocations(scope, SimulatedCuda(card))))
    print(f"written: {evidence.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
