"""GPU-memory regression testing for PyTorch inference: measure, judge, explain, remember.

Inside pytest use the fixture `vram`; outside, the same as plain functions: `vram.replay`, `vram.assert_stable`,
`with vram.measure() as m:`. Importing this imports neither torch nor NumPy: pytest loads it in every run, and a name
brings its module when it is first used.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
    from vram.api import assert_garbage, assert_peak, assert_ratio, assert_stable, replay
    from vram.budgets.file import Budget, read_budget
    from vram.errors import (
        GarbageExceeded,
        Inconclusive,
        LevelExceeded,
        MemoryGrowth,
        MemoryLeak,
        OutOfMemory,
        PeakExceeded,
        RatioExceeded,
        Undecided,
    )
    from vram.explanation.declared import categorize
    from vram.meters.base import Meter
    from vram.recording import Recording
    from vram.replaying.marks import mark
    from vram.replaying.measurement import Measurement, measure
    from vram.session import VramSession
    from vram.units import format_bytes, parse_bytes
    from vram.verdict.channels import verdicts
    from vram.verdict.growth import Forecast, Verdict, judge_growth
    from vram.verdict.peak import Overrun, judge_peak
    from vram.verdict.ratio import Level, Ratio, judge_level, judge_ratio

__all__ = [
    "Budget",
    "Forecast",
    "GarbageExceeded",
    "Inconclusive",
    "Level",
    "LevelExceeded",
    "Measurement",
    "MemoryGrowth",
    "MemoryLeak",
    "Meter",
    "OutOfMemory",
    "Overrun",
    "PeakExceeded",
    "Ratio",
    "RatioExceeded",
    "Recording",
    "Undecided",
    "Verdict",
    "VramSession",
    "assert_garbage",
    "assert_peak",
    "assert_ratio",
    "assert_stable",
    "categorize",
    "format_bytes",
    "judge_growth",
    "judge_level",
    "judge_peak",
    "judge_ratio",
    "mark",
    "measure",
    "parse_bytes",
    "read_budget",
    "replay",
    "verdicts",
]

_NAMES = {
    "vram.api": ("assert_garbage", "assert_peak", "assert_ratio", "assert_stable", "replay"),
    "vram.budgets.file": ("Budget", "read_budget"),
    "vram.errors": (
        "GarbageExceeded",
        "Inconclusive",
        "LevelExceeded",
        "MemoryGrowth",
        "MemoryLeak",
        "OutOfMemory",
        "PeakExceeded",
        "RatioExceeded",
        "Undecided",
    ),
    "vram.explanation.declared": ("categorize",),
    "vram.meters.base": ("Meter",),
    "vram.recording": ("Recording",),
    "vram.replaying.marks": ("mark",),
    "vram.replaying.measurement": ("Measurement", "measure"),
    "vram.session": ("VramSession",),
    "vram.units": ("format_bytes", "parse_bytes"),
    "vram.verdict.channels": ("verdicts",),
    "vram.verdict.growth": ("Forecast", "Verdict", "judge_growth"),
    "vram.verdict.peak": ("Overrun", "judge_peak"),
    "vram.verdict.ratio": ("Level", "Ratio", "judge_level", "judge_ratio"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}

if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name):
        """A public name from its module, or a module that nobody has imported yet."""
        if name == "__version__":
            return _version()
        if name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
            globals()[name] = value
            return value
        if not name.startswith("_"):
            try:
                return import_module(f"{__name__}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{__name__}.{name}":
                    raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    """The version of the installed distribution; "0" and a name where this is a source tree that is none."""
    try:
        return metadata.version("himap-vram")
    except metadata.PackageNotFoundError:
        return "0+source.tree"
