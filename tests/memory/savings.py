"""Savings of each mode, as the suite's report has them: the programs' own table, for each model that was recorded."""

from __future__ import annotations

import re
from typing import Any

from llava.mode_table import ModeFigures, mode_rows, table_lines
from llava.modes import MODES
from vram.summary import RecordingSummary, RunSummary

SIMULATED = dict.fromkeys(("prefill", "decode", "accuracy"), "nothing is computed on a simulated card")
REAL = {"accuracy": "all answers have the same length"}


def savings(run: RunSummary, width: int = 0) -> list[str]:
    """Lines of a table of all modes for each model that was recorded in some, as "himap" or "7b himap, sdpa".

    `width` is that of the terminal, 0 where it is not known.
    """
    models: dict[str, dict[str, ModeFigures]] = {}
    for one in run.recordings:
        if named := re.fullmatch(rf"(?P<of>.* )?(?P<mode>{'|'.join(map(re.escape, MODES))})(?P<with>, .*)?", one.name):
            model = f"{(named['of'] or '').strip()}{named['with'] or ''}"
            of_modes = models.setdefault(model, {mode: ModeFigures(mode) for mode in MODES})
            of_modes[named["mode"]] = _figures(named["mode"], one)
    lines = []
    for model in sorted(models):  # the real one first
        lines.append(f"savings of each mode{model and ', '}{model}:")
        lines += table_lines(mode_rows([*models[model].values()]), width, SIMULATED if model else REAL)
    return lines


def _figures(mode: str, recording: RecordingSummary) -> ModeFigures:
    """The mode's peak, and the figures that the suite noted."""
    full = recording.verdict == "out of memory"
    names = ("cache_bytes", "prefill_seconds", "decode_seconds", "flops_ratio")
    noted: dict[str, Any] = {name: recording.notes.get(name) for name in names}
    return ModeFigures(mode, None if full else recording.own_peak_bytes, **noted, out_of_memory=full)
