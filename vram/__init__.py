"""GPU-memory regression testing for PyTorch inference: measure, judge, explain, remember.

Inside pytest use the fixture `vram`; outside, the same as plain functions: `vram.replay`, `vram.assert_stable`,
`with vram.measure() as m:`. Importing this imports no torch: pytest loads it in every run.
"""

from vram.budgets import Budget, read_budget
from vram.checks import assert_peak, assert_ratio, assert_stable, verdicts
from vram.errors import Inconclusive, LevelExceeded, MemoryGrowth, MemoryLeak, OutOfMemory, PeakExceeded, Undecided
from vram.level import Level, judge_level
from vram.marks import mark
from vram.measuring import Measurement, measure
from vram.peak import Overrun, judge_peak
from vram.recording import Recording
from vram.replaying import replay
from vram.units import format_bytes, parse_bytes
from vram.verdict import Forecast, Verdict, judge_growth

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
