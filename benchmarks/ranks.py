"""Time that two ranks of torchrun save over one process, each with one thread: `python benchmarks/ranks.py`.

A LLaVA with random weights (hidden size 512, 8 layers, 576 image tokens; 8 tokens an answer) is written to a temporary
folder; one process, and torchrun with two, answer the same embedded questions. *Answering* is the sum of the
answers' own seconds, of the slower rank where there are two: without imports, loading and start-up. *Whole* is the
wall time of the command. Rounds alternate; medians are printed. Both results are checked to be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from himap import HimapLlavaForConditionalGeneration
from llava.shapes import Shape, Transformer, clip_processor, llava_config, our_tokenizer

SHAPE = Shape(Transformer(512, 1376, 8, 8), Transformer(256, 1024, 6, 4), image_size=336, patch_size=14)
ROOT = Path(__file__).parents[1]


def write_model(folder: Path) -> None:
    tokenizer = our_tokenizer()
    tokenizer.save_pretrained(folder)
    clip_processor(SHAPE.image_size).save_pretrained(folder)
    torch.manual_seed(0)
    HimapLlavaForConditionalGeneration(llava_config(SHAPE, tokenizer)).save_pretrained(folder)


def answer(ranks: int, folder: Path, questions: int) -> tuple[float, float, dict[str, Any]]:
    """Seconds of answering, of the whole command, and the results."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    output = folder / f"{ranks}.json"
    program = ["-m", "llava.eval.eval_scivqa", "--model-path", str(folder / "model"), "--device", "cpu"]
    started = time.perf_counter()
    subprocess.run(  # noqa: S603
        [sys.executable, *launcher, *program, "--num-samples", str(questions), "--output-file", str(output)],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    whole = time.perf_counter() - started
    result = json.loads(output.read_text(encoding="utf-8"))
    seconds = [each["seconds"] for each in result["answers"]]
    return max(sum(seconds[rank::ranks]) for rank in range(ranks)), whole, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    figures: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    predictions = set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        for _ in range(options.rounds):
            for ranks, taken in figures.items():
                answering, whole, result = answer(ranks, folder, options.questions)
                taken.append((answering, whole))
                predictions.add(json.dumps([each["prediction"] for each in result["answers"]]))
    if len(predictions) != 1:
        raise SystemExit("the answers of one process and of two ranks must be the same")
    print(f"{'processes':<12}{'answering':<12}whole")
    medians = {}
    for ranks, taken in figures.items():
        medians[ranks] = [statistics.median(column) for column in zip(*taken, strict=True)]
        print(f"{ranks:<12}{medians[ranks][0]:<12.1f}{medians[ranks][1]:.1f}")
    ratios = [one / two for one, two in zip(*medians.values(), strict=True)]
    print(f"{'ratio':<12}{ratios[0]:<12.2f}{ratios[1]:.2f}")


if __name__ == "__main__":
    main()
