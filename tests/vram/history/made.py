"""Entries and runs made by hand, for the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vram.history import store
from vram.history.compare import Located
from vram.history.entries import Channel, Entry
from vram.history.keys import key_of

CPU = {"source": "CPU tensors", "torch": "2.13.0+cpu", "platform": "Linux x86_64", "python": "3.11.7"}
MACHINE = "Linux-CPython-3.11-64bit"


def entry(
    peak: int | None = 1000,
    *,
    growth: float = 0.0,
    mode: str = "himap",
    accepted: bool = False,
    verdict: str | None = "stable",
    environment: Mapping[str, object] = CPU,
    noisy: Mapping[str, int] | None = None,
    samples: int | None = 20,
) -> Entry:
    """An entry with an exact peak, a live level that grows or not, and noisy channels."""
    channels = {name: Channel(exact=False, most_bytes=most, last_bytes=most) for name, most in (noisy or {}).items()}
    if peak is not None:
        channels["requested"] = Channel(True, 10, 10, growth, "grows" if growth else "stable")
        channels["requested_peak"] = Channel(True, peak, peak, 0.0, "stable")
    return Entry(
        key=key_of(environment, mode=mode, samples=samples),
        test=f"tests/test_{mode}.py::test_stable",
        verdict=verdict,
        reason="made by hand",
        channels=channels,
        accepted=accepted,
    )


def series(*entries: Entry) -> list[Located]:
    """Entries of runs 0001, 0002, ..."""
    return [Located(f"run {number:04}", one) for number, one in enumerate(entries, start=1)]


def run_json(entries: Sequence[Entry], *, minute: int = 0, commit: str = "unversioned") -> dict[str, Any]:
    """A whole run, as pytest-benchmark saves it."""
    stats: dict[str, Any] = dict.fromkeys(
        ("min", "max", "mean", "median", "total", "q1", "q3", "ld15iqr", "hd15iqr"), 0.5
    )
    stats |= dict.fromkeys(("stddev", "iqr", "iqr_outliers", "stddev_outliers"), 0)
    stats |= {"rounds": 1, "iterations": 1, "ops": 2.0, "ld15iqr": 0.5, "hd15iqr": 0.5, "outliers": "0;0"}
    return {
        "machine_info": {"node": "here", "cpu": {"brand_raw": "one", "flags": ["sse"] * 20}},
        "commit_info": {"id": commit, "time": None, "dirty": False, "project": "p", "branch": "main"},
        "benchmarks": [
            {
                "group": "vram",
                "name": one.name,
                "fullname": one.name,
                "params": None,
                "param": None,
                "extra_info": {"vram": store.packed([one])},
                "options": {},
                "stats": stats,
            }
            for one in entries
        ],
        "datetime": f"2026-01-{1 + minute // 1440:02}T{minute // 60 % 24:02}:{minute % 60:02}:00+00:00",
        "version": "5.3.1",
    }


def write_runs(folder: Path, *runs: Sequence[Entry], commits: Sequence[str] = ()) -> str:
    """Runs 0001_made, 0002_made, ... a minute apart, in a store whose URI is returned."""
    (folder / MACHINE).mkdir(parents=True, exist_ok=True)
    for number, entries in enumerate(runs, start=1):
        told = run_json(entries, minute=number, commit=commits[number - 1] if commits else "unversioned")
        (folder / MACHINE / f"{number:04}_made.json").write_text(json.dumps(told))
    return f"file://{folder}"
