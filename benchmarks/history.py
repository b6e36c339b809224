"""How long `vram compare`, `history` and `report` take on many runs: `python benchmarks/history.py [--runs 1000]`.

Writes the runs into a temporary folder through the writer that pytest uses: four modes, a marked test, 5 laps of 20
samples in four channels, peaks in pieces, a step and noise. Times are of the whole command, medians of rounds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pytest_benchmark.plugin import pytest_benchmark_generate_machine_info

from vram.history import saver
from vram.history.entries import Entry, of_marked, of_summary
from vram.summary import ChannelSummary, MarkedSummary, RecordingSummary
from vram.summary.breakdown import Breakdown, Piece

ENVIRONMENT = {
    "device": "NVIDIA A100-SXM4-40GB",
    "compute_capability": "8.0",
    "driver": "570.86.15",
    "torch": "2.13.0+cu128",
    "cuda": "12.8",
    "allocator": "expandable_segments:True",
    "source": "CUDA allocator of cuda:0",
    "platform": "Linux x86_64",
}
FACTS = {"model": "llava-1.5-7b-hf", "dtype": "float16", "attention": "sdpa"}
MODES = ("baseline", "himap", "custom-fps", "custom-tome")
COMMANDS: tuple[tuple[str, ...], ...] = (("compare",), ("compare", "recorded", "--fail", "peak:2%"), ("history",))


def breakdown(peak_bytes: int, draw: random.Random) -> Breakdown:
    """A peak of 60 pieces, as one of a large model has: what is kept of it is near its limit of 3 KB."""
    pieces = [
        Piece(
            2**20 * (100 - number) + draw.randrange(2**10),
            32,
            f"transformers/models/llama/modeling_llama.py:{100 + number} LlamaPart{number}.forward",
            "aten.mul",
            "float16",
            f"[1, {number + 600}, 4096]",
            f"model.language_model.layers.*.part_{number}",
            ("activations", "weights", "KV cache")[number % 3],
        )
        for number in range(60)
    ]
    return Breakdown(19, peak_bytes, tuple(pieces), peak_bytes - sum(piece.n_bytes for piece in pieces), "workspaces")


def entries(run: int, draw: random.Random) -> list[Entry]:
    found = []
    for mode in MODES:
        peaks = [18 * 2**30 + 2**20 * (sample * 37 % 100) + (2**25 if run > 600 else 0) for sample in range(20)]
        noisy = [[20 * 2**30 + 2**21 * draw.randrange(8) for _ in range(20)] for _ in range(5)]
        channels = {
            "requested": [[14 * 2**30] * 20] * 5,
            "requested_peak": [peaks] * 5,
            "reserved": noisy,
            "driver": noisy,
        }
        summary = RecordingSummary(
            mode,
            laps=5,
            samples=20,
            verdict="stable",
            reason="every sample ended at its lowest level",
            seconds=100 + draw.random(),
            facts=FACTS,
            at_peak={"breakdown": breakdown(max(peaks), draw).to_json()},
            channels={
                name: ChannelSummary("req" in name, laps, 0, verdict="stable", bytes_per_sample=0.0)
                for name, laps in channels.items()
            },
        )
        found.append(of_summary(summary, ENVIRONMENT, f"tests/memory/test_growth.py::test_it_is_stable[{mode}]"))
    marked = MarkedSummary("tests/test_forward.py::test_forward", peak_bytes=48 * 2**20, kept_bytes=0)
    return [*found, of_marked(marked, ENVIRONMENT)]


def write(folder: Path, runs: int) -> None:
    from pytest_benchmark.storage.file import FileStorage

    draw = random.Random(0)  # noqa: S311 - noise
    machine = pytest_benchmark_generate_machine_info()
    logger = SimpleNamespace(info=lambda _: None)
    for run in range(runs):
        made: Any = FileStorage
        session = SimpleNamespace(benchmarks=[], save="made", autosave=None, json=None)
        session.storage = made(folder, logger, default_machine_id="Linux-CPython-3.11-64bit")
        saver.Saver(session).put(entries(run, draw), {})
        saved = {
            "machine_info": machine,
            "commit_info": {"id": f"{run:040x}", "dirty": False},
            "benchmarks": [one.as_dict(include_data=False) for one in session.benchmarks],
            "datetime": (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=run)).isoformat(),
            "version": "5.3.1",
        }
        session.storage.save(saved, "made")


def seconds(command: tuple[str, ...], folder: Path, rounds: int) -> float:
    taken, whole = [], [sys.executable, "-m", "vram", *command, "--storage", str(folder)]
    for _ in range(rounds):
        started = time.perf_counter()
        subprocess.run(whole, capture_output=True, check=False)  # noqa: S603 - our own command
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, arguments.runs)
        size = sum(path.stat().st_size for path in folder.rglob("*.json"))
        print(f"{arguments.runs} runs, {size / 2**20:.1f} MiB")
        for command in COMMANDS:
            print(f"vram {' '.join(command)}: {seconds(command, folder, arguments.rounds):.2f} s")
        page = folder / "page.html"
        taken = seconds(("report", "--output", str(page)), folder, arguments.rounds)
        print(f"vram report: {taken:.2f} s, {page.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
