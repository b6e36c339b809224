"""The table of savings at the end of the memory suite."""

from __future__ import annotations

import re
from pathlib import Path

from tests.memory.savings import savings
from vram.report.json_file import write_report
from vram.summary import RecordingSummary, RunSummary
from vram.summary.reader import read_run

SAVED = "saved: bytes less than in baseline; prefill, decode and FLOPs: baseline is 1"


def test_what_each_mode_saves_is_a_table(tmp_path: Path) -> None:
    """A table for the real model and for each simulated one, as the programs print it; absent figures are named."""
    notes = {"cache_bytes": 1024, "flops_ratio": 0.5}
    recordings = [
        RecordingSummary("baseline", peak_bytes=4096, notes={"cache_bytes": 4096, "prefill_seconds": 0.5}),
        RecordingSummary("himap", peak_bytes=1024, notes=notes | {"prefill_seconds": 0.25}),
        RecordingSummary("fastv", peak_bytes=2048, verdict="out of memory"),
        RecordingSummary("7b baseline, sdpa", peak_bytes=8192),
        RecordingSummary("7b custom-fps, sdpa", peak_bytes=8191, notes=notes),
        RecordingSummary("a test's own", peak_bytes=1),
    ]
    write_report(tmp_path / "memory.json", RunSummary(recordings=recordings))

    none, nothing = ["not measured"], ["not measured"] * 4
    assert [re.split("  +", line) for line in savings(read_run(tmp_path / "memory.json"))] == [
        ["savings of each mode:"],
        ["mode", "peak", "saved", "KV cache after the prompt", "saved", "prefill", "FLOPs"],
        ["baseline", "4.00 KiB", "0 B", "4.00 KiB", "0 B", "1.00 (500 ms)", *none],
        ["himap", "1.00 KiB", "3.00 KiB", "1.00 KiB", "3.00 KiB", "0.50 (250 ms)", "0.500"],
        ["fastv", "out of memory", *none, *nothing],
        ["custom-fps", *none, *none, *nothing],
        ["custom-tome", *none, *none, *nothing],
        [f"{SAVED}; times are of this one run, and vary"],
        ["not measured here: decode; accuracy (all answers have the same length)"],
        ["savings of each mode, 7b, sdpa:"],
        ["mode", "peak", "saved", "KV cache after the prompt", "FLOPs"],
        ["baseline", "8.00 KiB", "0 B", *none, *none],
        *([mode, *nothing] for mode in ("himap", "fastv")),
        ["custom-fps", "8.00 KiB", "1 B", "1.00 KiB", "0.500"],
        ["custom-tome", *nothing],
        [SAVED],
        ["not measured here: prefill, decode, accuracy (nothing is computed on a simulated card)"],
    ]


def test_without_a_mode_s_recording_there_is_no_table(tmp_path: Path) -> None:
    """As where only some tests ran."""
    assert savings(RunSummary(recordings=[RecordingSummary("a test's own", peak_bytes=1)])) == []
