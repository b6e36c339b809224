"""A report that one real run of the plugin wrote, shared by the tests of this folder, and what is made of it: the same
with names that would be markup, and a history of twelve runs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vram.history.entries import of_summary
from vram.history.runs import History, Run
from vram.report.gathered import Page, gathered
from vram.summary.reader import recording_from_json, run_from_json

HOSTILE = (
    "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1> <!-- | `@everyone` "
    "[a](http://x.y) \u2028é"
)
MIB = 2**20
Json = dict[str, Any]
SUITE = """
import pytest
import torch

import vram as plugin

KEPT = []


@pytest.fixture(autouse=True)
def without_what_was_kept():
    yield
    KEPT.clear()


def answer(length):
    scratch = torch.zeros(256 * length)
    plugin.mark("token")


def leak(length):
    KEPT.append(torch.zeros(1024))


def die(length):
    kept = torch.zeros(1000)
    if length == 2:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 48.00 MiB.")


def test_quiet(vram):
    vram.assert_stable(vram.replay(answer, [1, 5, 2], laps=3, name="quiet"))


def test_leaks(vram):
    vram.assert_stable(vram.replay(leak, [1, 2], name="leaks"))


def test_large(vram):
    vram.assert_peak(vram.replay(answer, [1], laps=3, name="large"), 1)


def test_unread(vram):
    vram.assert_peak(vram.replay(answer, [1], laps=3, name="unread"), "1 GiB", channel="driver")


def test_once(vram):
    vram.replay(answer, [1], laps=1, name="once")


def test_dies(vram):
    vram.replay(die, [1, 2], name="dies")


@pytest.mark.vram_limit("1 KiB")
def test_marked():
    torch.zeros(1000)
"""
# Words of ours, not names of what was measured.
_OURS = ("verdict", "outcome", "kind", "status", "verdict_channel", "channel")
_PACKED = ("at", "bytes", "largest", "largest_bytes", "began", "ended", "stack")  # numbers of a timeline


@pytest.fixture(scope="session")
def _shared() -> dict[str, str]:
    return {}


@pytest.fixture
def report(request: pytest.FixtureRequest, _shared: dict[str, str]) -> Json:
    """Six recordings, worst first: dies, leaks, large (over its limit), unread, quiet, once; and a marked test that is
    over its limit. The first test to ask runs the suite, in some 5 s; each has a copy of its own."""
    if not _shared:
        pytester: pytest.Pytester = request.getfixturevalue("pytester")
        pytester.makepyfile(test_suite=SUITE)
        options = ("--vram-device", "cpu", "--vram-breakdown", "--vram-report", "r.json")
        result = pytester.runpytest(*options)
        _shared["report"] = (pytester.path / "r.json").read_text()
        result.assert_outcomes(passed=2, failed=4, skipped=1)
    report: Json = json.loads(_shared["report"])
    return report


@pytest.fixture
def hostile_report(report: Json) -> Json:
    """The report with every text that a project chooses ending in markup, which no test can make pytest run."""
    marked: Json = _hostile({name: report[name] for name in ("environment", "modes", "tests", "failures")})
    return {**report, **marked}


def _hostile(value: Any, name: str = "") -> Any:
    if isinstance(value, str):
        return value if name in (*_OURS, *_PACKED) else f"{value} {HOSTILE}"
    if isinstance(value, list):
        return [_hostile(one, name) for one in value]
    if isinstance(value, dict):
        changed = {f"{key} {HOSTILE}" if name in ("marks", "absent") else key: one for key, one in value.items()}
        return {key: _hostile(one, key) for key, one in changed.items()}
    return value


@pytest.fixture
def history(report: Json) -> History:
    """Twelve runs of two keys; the peak of the first is 40 MiB, and 42 MiB from the seventh run on."""
    quiet, once = (mode_of(report, name) for name in ("quiet", "once"))
    runs = []
    for number in range(12):
        modes = [with_peak(quiet, (42 if number >= 6 else 40) * MIB), with_peak(once, 30 * MIB) | {"mode": HOSTILE}]
        entries = [of_summary(recording_from_json(mode), report["environment"], "tests/test_x.py") for mode in modes]
        name = f"{number + 1:04d}_made"
        runs.append(Run(f"m/{name}.json", f"2026-01-{number + 1:02d}T10:00:00", f"{number:040x}", False, entries))
    return History(runs, ("m/0099_broken.json: not JSON",))


def mode_of(report: Json, name: str) -> Json:
    """The recording of this name."""
    mode: Json = next(mode for mode in report["modes"] if mode["mode"] == name)
    return mode


def with_peak(mode: Json, peak_bytes: int) -> Json:
    """`mode` with all its readings moved, so that its peak is `peak_bytes`."""
    more = peak_bytes - mode["peak_bytes"]
    channels = {
        name: {**channel, "bytes": [[reading + more for reading in lap] for lap in channel["bytes"]]}
        for name, channel in mode["channels"].items()
    }
    return {**mode, "peak_bytes": peak_bytes, "channels": channels}


def page_of(report: Json, history: History | None = None, *names: str) -> Page:
    """The page of a report, or of its recordings of these names alone."""
    if names:
        report = {**report, "modes": [mode_of(report, name) for name in names], "tests": []}
    return gathered(run_from_json(report), history or History(()))
