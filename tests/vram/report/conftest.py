"""A report and a history with everything in them, and names that would like to be markup."""

from __future__ import annotations

from typing import Any

import pytest

from vram.history.entries import of_summary
from vram.history.runs import History, Run
from vram.summary.reader import recording_from_json

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1> <!-- | `@everyone` "
    "[a](http://x.y) \u2028é"
)
MIB = 2**20
ENVIRONMENT = {"torch": "2.13.0", "device": HOSTILE, "source": "CPU tensors", "platform": "Linux x86_64"}


def a_mode(name: str, *, verdict: str | None = "stable", peak: int = 40 * MIB, **more: Any) -> dict[str, Any]:
    laps = [[peak - 3 * MIB, peak - index * 1000 - MIB, peak] for index in range(3)]
    judged = {"verdict": verdict, "bytes_per_sample": 4096.0 if verdict == "grows" else 0.0}
    channel = {**judged, "exact": True, "tolerance_bytes": 0, "before_bytes": 8 * MIB, "bytes": laps}
    return {
        "mode": name,
        "laps": 3,
        "samples": 3,
        **judged,
        "reason": "it rose in 8 of 8 laps" if verdict == "grows" else "no sample ends above its own lowest level",
        "peak_bytes": peak,
        "softmax_peak_bytes": None,
        "budget_bytes": peak,
        "seconds": 1.5,
        "channels": {"requested": channel, "requested_peak": channel},
        "marks": {"token": {"sample": 2, "channels": {"requested": [[1 * MIB, 2 * MIB], [1 * MIB, 2 * MIB]]}}},
        "environment": ENVIRONMENT,
        "absent": {"driver": "a CPU has no driver that counts memory"},
        **more,
    }


@pytest.fixture
def report() -> dict[str, Any]:
    """Four recordings: stable and broken down, growing with a hostile name, over its budget, undecided."""
    line = {"line": f"model.py:4 {HOSTILE}", "op": "aten.mm", "dtype": "float32", "shape": "[4, 4]"}
    told = {"where": line["line"], "caller": "", "bytes_per_sample": 4096.0, "holder": f"list {HOSTILE}"}
    explained = {"lines": [{**line, **told}]}
    made_of = {"sample": 2, "bytes": 40 * MIB, "lines": [{**line, "bytes": 9 * MIB, "count": 3}]}
    return {
        "schema": 1,
        "environment": ENVIRONMENT,
        "modes": [
            a_mode("quiet", at_peak=made_of),
            a_mode(HOSTILE, verdict="grows", explanation=explained),
            a_mode("large", budget_bytes=40 * MIB - 1),
            a_mode("doubtful", verdict=None),
        ],
        "tests": [
            {
                "test": f"tests/test_x.py::test_{HOSTILE}",
                "peak_bytes": 2049,
                "limit_bytes": 2048,
                "kept_bytes": None,
                "allow_bytes": None,
                "verdict": "failed",
            }
        ],
    }


@pytest.fixture
def history() -> History:
    """Twelve runs of two keys; the first needs 2 MiB more from the seventh on."""
    runs = []
    for number in range(12):
        modes = [a_mode("quiet", peak=(42 if number >= 6 else 40) * MIB), a_mode(HOSTILE, peak=30 * MIB)]
        entries = [of_summary(recording_from_json(mode), ENVIRONMENT, "tests/test_x.py::test_it") for mode in modes]
        name = f"{number + 1:04d}_made"
        runs.append(Run(f"m/{name}.json", f"2026-01-{number + 1:02d}T10:00:00", f"{number:040x}", False, entries))
    return History(runs, ("m/0099_broken.json: not JSON",))
