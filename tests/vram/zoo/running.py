"""Running a case of the zoo: a pytest of its own, in this process, with the real plugin."""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from typing import Any

import pytest

from tests.vram.zoo.cases import ZOO, Case, cases, witnesses
from tests.vram.zoo.judging import Seen

_INI = "[pytest]\nfilterwarnings = error\n"
# Plugins that no case uses; loading them takes time.
_UNUSED = ("cacheprovider", "anyio", "asyncio", "hypothesispytest", "xdist")
_QUIET = tuple(f"-pno:{plugin}" for plugin in _UNUSED)


def params(kind: str) -> list[Any]:
    """The cases of a folder, for `parametrize`. What is known to go wrong must go wrong, until somebody mends it."""
    every = cases(kind)
    on_push = witnesses(every)
    return [pytest.param(case, id=case.name, marks=_marks(case, case.name in on_push)) for case in every]


def _marks(case: Case, on_push: bool) -> list[pytest.MarkDecorator]:
    fault = [pytest.mark.xfail(reason=case.fault, strict=True)] if case.fault else []
    return fault if on_push else [*fault, pytest.mark.full]


def run(case: Case, pytester: pytest.Pytester) -> Seen:
    """Run the case as a project of its own: its file, the tiny model, and warnings as errors."""
    if case.of_a_model:
        import tests.vram.zoo.tiny  # noqa: F401 - the run inside would unload what it imported
    _give_pages_back()
    pytester.makeini(_INI)
    for name, path in ((f"test_{case.name}", case.path), ("tiny", ZOO / "tiny.py")):
        (pytester.path / f"{name}.py").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    # So that suggestions are looked for. What grows has them where it is explained.
    broken_down = [] if case.kind == "leak" else ["--vram-breakdown"]
    options = "--vram-device", case.device, "--vram-report", "r.json", *broken_down
    result = pytester.runpytest_inprocess(*options, *_QUIET)
    reports = result.reprec.getreports("pytest_runtest_logreport")  # type: ignore[attr-defined]
    report = next(report for report in reports if report.when == "call")
    error, message = vars(report).get("vram", {}).get("failed") or ("", report.longreprtext)
    written = pytester.path / "r.json"
    modes = json.loads(written.read_text(encoding="utf-8"))["modes"] if written.exists() else []
    explanation = (modes[0].get("explanation") if modes else None) or {}
    snapshot = pytester.path / (explanation.get("snapshot") or "none")
    return Seen(
        outcome=report.outcome,
        error=error,
        message=message,
        modes=modes,
        snapshot_bytes=snapshot.stat().st_size if snapshot.exists() else 0,
    )


def _give_pages_back() -> None:
    """The C library still has what earlier tests have freed: copies on the host would be taken from there, unseen."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
