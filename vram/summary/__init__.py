"""The one schema of everything that is said of a run: every surface renders these values, and none computes its own.

A recording becomes a `RecordingSummary`, a test with markers a `MarkedSummary`, a pytest session a `RunSummary`. All
are frozen; derived words are properties. `to_json` writes them, `vram.summary.reader` reads them back.
"""

from vram.summary.marked import MarkedSummary
from vram.summary.parts import GARBAGE, ChannelSummary, Check, RatioSummary, Status
from vram.summary.recording import (
    NEEDS_ATTENTION,
    NO_DECISION,
    OUTCOMES,
    Outcome,
    RecordingSummary,
    garbage_text,
)
from vram.summary.run import SCHEMA, Failure, RunSummary, merged_environment

__all__ = [
    "GARBAGE",
    "NEEDS_ATTENTION",
    "NO_DECISION",
    "OUTCOMES",
    "SCHEMA",
    "ChannelSummary",
    "Check",
    "Failure",
    "MarkedSummary",
    "Outcome",
    "RatioSummary",
    "RecordingSummary",
    "RunSummary",
    "Status",
    "garbage_text",
    "merged_environment",
]
