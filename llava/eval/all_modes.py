"""Answering the same questions in every mode, on one loaded model, and the table of what each saves."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from himap import HimapLlavaForConditionalGeneration
from llava.answering import Answerer
from llava.eval.loop import answer_run, answerer_of, fixed_seed
from llava.eval.preparation import Run, prepare_all
from llava.eval.results import SCHEMA, mode_figures, partial_file, write_json
from llava.eval.terminal import say
from llava.mode_table import ModeFigures, ModeRow, mode_rows, table_lines
from vram.replaying.out_of_memory import is_out_of_memory
from vram.text import terminal_columns

_WARM_UP_TOKENS = 2  # a prefill and a step
_REASONS = {"KV cache after the prompt": "none is kept", "accuracy": "no question has a label"}
_NO_QUESTIONS = dict.fromkeys((*_REASONS, "prefill", "decode", "FLOPs"), "no question was answered")


def evaluate_all(options: argparse.Namespace, *, prog: str) -> None:
    """Answer the questions in one mode after the other, as `evaluate` does each, then print and write the table.

    A mode that runs out of memory has its row, and the others go on; then the table is written as incomplete, to the
    partial file, and MemoryError names the modes. When answering is interrupted, no table is written.
    """
    table, runs = prepare_all(options, prog)
    model = _Model()
    figures = [_figures(run, model) for run in runs]
    rows = mode_rows(figures)
    failed = [each.mode for each in figures if each.out_of_memory]
    file = partial_file(table) if failed else table
    write_json(file, _as_json(rows, runs, complete=not failed))
    if not failed:
        partial_file(table).unlink(missing_ok=True)
    reasons = _REASONS if runs[0].questions else _NO_QUESTIONS
    for line in table_lines(rows, terminal_columns(sys.stdout.isatty()), reasons):
        say(line)
    say(f"Table: {file}")
    if failed:
        raise MemoryError(f"in mode {' and '.join(failed)}; the others have answered")


class _Model:
    """The one model of all modes, loaded when it is first needed."""

    def __init__(self) -> None:
        self.loaded: HimapLlavaForConditionalGeneration | None = None

    def answerer(self, run: Run) -> Answerer:
        """The model in the mode of `run`, warmed up: what runs only once counts in no mode's times."""
        if self.loaded is None:
            self.loaded = run.checkpoint.load_model(run.placement)
        some = next((question for question in run.questions if question.image is not None), None)
        if some is not None:
            with fixed_seed():
                answerer_of(run, self.loaded, min(_WARM_UP_TOKENS, run.new_tokens)).answer(some)
        return answerer_of(run, self.loaded)


def _figures(run: Run, model: _Model) -> ModeFigures:
    """Answer in the mode of `run`; its figures."""
    try:
        so_far = answer_run(run, lambda: model.answerer(run))
    except Exception as error:
        if model.loaded is None or not (isinstance(error, MemoryError) or is_out_of_memory(error)):
            raise
        say("; ".join((f"Out of memory in mode {run.mode}", *getattr(error, "__notes__", []))))
    else:
        return mode_figures(run.mode, so_far.in_order, so_far.whole_memory)
    # Only now, without the exception, are the failed answer's tensors free.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return ModeFigures(run.mode, out_of_memory=True)


def _as_json(rows: Sequence[ModeRow], runs: Sequence[Run], *, complete: bool) -> dict[str, Any]:
    """The table's file. `results` names each mode's own file, beside it."""
    files: Mapping[str, Path] = {run.mode: run.output for run in runs}
    return {
        "schema": SCHEMA,
        "complete": complete,
        "mode": "all",
        "modes": [row.to_json() for row in rows],
        "results": {mode: file.name for mode, file in files.items()},
        "questions": dict(runs[0].questions_summary),
    }
