"""GPU-memory regression testing for PyTorch inference: measure, judge, explain, remember.

Inside pytest use the fixture `vram`; outside, the same as plain functions: `vram.replay`, `vram.assert_stable`,
`with vram.measure() as m:`. Importing this imports no torch: pytest loads it in every run.
"""

from vram.api import assert_peak, assert_ratio, assert_stable, replay, verdicts
from vram.budgets.file import Budget, read_budget
from vram.errors import Inconclusive, LevelExceeded, MemoryGrowth, MemoryLeak, OutOfMemory, PeakExceeded, Undecided
from vram.recording import Recording
from vram.replaying.marks import mark
from vram.replaying.measurement import Measurement, measure
from vram.units import format_bytes, parse_bytes
from vram.verdict.growth import Forecast, Verdict, judge_growth
from vram.verdict.peak import Overrun, judge_peak
from vram.verdict.ratio import Level, judge_level

__all__ = [
    "Budget",
    "Forecast",
    "Inconclusive",
    "Level",
    "LevelExceeded",
    "Measurement",
    "MemoryGrowth",
    "MemoryLeak",
    "OutOfMemory",
    "Overrun",
    "PeakExceeded",
    "Recording",
    "Undecided",
    "Verdict",
    "assert_peak",
    "assert_ratio",
    "assert_stable",
    "format_bytes",
    "judge_growth",
    "judge_level",
    "judge_peak",
    "mark",
    "measure",
    "parse_bytes",
    "read_budget",
    "replay",
    "verdicts",
]
