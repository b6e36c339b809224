"""Reports made by hand, with names that mean harm."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HOSTILE = (
    "</script><script>window.hacked=1</script>",
    "<!-- <img src=x onerror='window.hacked=2'> -->",
    'a"b\' onmouseover="window.hacked=3" x="',
    "line\nbreak\r\u2028and\u2029more\x00\x1b[31m",
    "pipe | back`tick `` fence ``` end \\| \\",
    "@someone #12 [link](http://example.org) **bold** <b>html</b> https://example.org",
    "\u202eright to left \ud800 half a pair",
    "${alert(1)} %{y} {{x}}",
)
CPU = {"source": "CPU tensors", "torch": "2.13.0+cpu", "platform": "Linux x86_64"}


def channel(laps: Sequence[Sequence[int]], **more: Any) -> dict[str, Any]:
    judged = {"verdict": "stable", "bytes_per_sample": 0.0, "interval_bytes": [0.0, 0.0], "onset_run": None}
    rest = {"resolution_bytes": 1, "exact": True, "tolerance_bytes": 0, "before_bytes": 100}
    return {**judged, **rest, "bytes": [list(lap) for lap in laps], **more}


def mode(name: str = "himap", **more: Any) -> dict[str, Any]:
    """Stable over 5 laps of 4 samples, with a peak of 4 KiB and nothing more."""
    return {
        "mode": name,
        "laps": 5,
        "samples": 4,
        "verdict": "stable",
        "verdict_channel": "requested",
        "reason": "no sample ends above its own lowest level",
        "bytes_per_sample": 0.0,
        "peak_bytes": 4096,
        "softmax_peak_bytes": None,
        "budget_bytes": None,
        "seconds": 0.5,
        "channels": {
            "requested": channel([[1000, 1000, 1000, 1000]] * 5),
            "requested_peak": channel([[2048, 3072, 4096, 2048]] * 5),
        },
        "environment": CPU,
        "absent": {"driver": "a CPU has no driver that counts memory"},
        "named": True,
        **more,
    }


def leaky(name: str = "leaky", **more: Any) -> dict[str, Any]:
    """Grows by 64 bytes a sample, and says from which line."""
    laps = [[1000 + 64 * (4 * lap + sample) for sample in range(4)] for lap in range(5)]
    line = {
        **{"where": "model.py:7 answer", "caller": "", "op": "aten.ones", "dtype": "float32", "shape": "[16]"},
        **{"bytes_per_sample": 64.0, "n_bytes": 1280, "count": 20, "first": "", "holder": "list `kept`"},
    }
    explained = {"note": "", "runs": 20, "at_peak": False, "lines": [line], "snapshot": "snapshots/leaky.pickle"}
    judged = {"verdict": "grows", "bytes_per_sample": 64.0, "interval_bytes": [64.0, 64.0], "onset_run": 5}
    told = {"verdict": "grows", "reason": "it rose in 4 of 4 laps and never came back", "bytes_per_sample": 64.0}
    return mode(name, **{**told, "channels": {"requested": channel(laps, **judged)}, "explanation": explained, **more})


def with_tokens(name: str = "tokens", **more: Any) -> dict[str, Any]:
    """With readings by token, and with what its peak is made of."""
    marks = {"token": {"sample": 2, "channels": {"requested": [[1000 + 8 * token for token in range(6)]] * 5}}}
    lines = [
        {"line": "before the sample", "op": "", "dtype": "", "shape": "", "bytes": 3072, "count": 9},
        {"line": "model.py:3 f", "op": "aten.mm", "dtype": "float32", "shape": "[16, 16]", "bytes": 1024, "count": 1},
    ]
    return mode(name, marks=marks, at_peak={"sample": 2, "bytes": 4096, "lines": lines}, **more)


def hostile(index: int) -> dict[str, Any]:
    """A mode in which every text means harm."""
    text = HOSTILE[index]
    told = leaky(text, reason=text, absent={text: text}, environment={**CPU, text: text}, facts={text: text})
    line = told["explanation"]["lines"][0]
    line.update(dict.fromkeys(("where", "caller", "op", "shape", "first", "holder"), text))
    told["explanation"].update(note=text, snapshot=text)
    told["channels"][text] = channel([[5, 6, 7, 8]] * 5)
    told["marks"] = {text: {"sample": 0, "channels": {text: [[1, 2, 3]]}}}
    told["at_peak"] = {
        "sample": 0,
        "bytes": 10,
        "lines": [{"line": text, "op": text, "dtype": text, "shape": text, "bytes": 10, "count": 1}],
    }
    told["ratios"] = [{"reference": text, "ratio": 2.0, "at_most": 1.0, "text": text}]
    return told


def marked(test: str = "tests/test_forward.py::test_it", *, peak: int = 100, limit: int | None = 200) -> dict[str, Any]:
    over = limit is not None and peak > limit
    figures = {"peak_bytes": peak, "limit_bytes": limit, "kept_bytes": None, "allow_bytes": None}
    return {"test": test, **figures, "verdict": "failed" if over else "passed"}


def report(*modes: Mapping[str, Any], tests: Sequence[Mapping[str, Any]] = (), **more: Any) -> dict[str, Any]:
    return {"schema": 1, "environment": CPU, "modes": list(modes), "tests": list(tests), **more}


def written(path: Path, told: object) -> Path:
    path.write_text(json.dumps(told))
    return path
