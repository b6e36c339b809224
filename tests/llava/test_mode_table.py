"""The table of modes: differences and ratios by hand, and no figure where there was none."""

from __future__ import annotations

import re

import pytest
import torch

from himap import HimapLlavaForConditionalGeneration
from himap.flops import cache_bytes
from llava.answering import Answerer
from llava.builder import Checkpoint
from llava.eval.results import Answered, mode_figures
from llava.mode_table import ModeFigures, mode_rows, table_lines
from llava.modes import MODES, set_mode
from llava.questions import embedded_questions

BASELINE = ModeFigures("baseline", 2**30, 4096, 0.5, 0.02, 1.0, 0.5)


def test_savings_and_ratios_are_against_baseline() -> None:
    """Wherever baseline stands in the list."""
    himap = ModeFigures("himap", 2**29, 1024, 0.2, 0.03, 0.25, 0.75)

    row, base = mode_rows([himap, BASELINE])

    assert (row.peak_saved_bytes, row.cache_saved_bytes, row.prefill_ratio, row.decode_ratio) == (2**29, 3072, 0.4, 1.5)
    assert (base.peak_saved_bytes, base.cache_saved_bytes, base.prefill_ratio, base.decode_ratio) == (0, 0, 1.0, 1.0)
    assert row.to_json() == {
        "mode": "himap", "peak_bytes": 2**29, "cache_bytes": 1024, "prefill_seconds": 0.2, "decode_seconds": 0.03,
        "flops_ratio": 0.25, "accuracy": 0.75, "out_of_memory": False, "peak_saved_bytes": 2**29,
        "cache_saved_bytes": 3072, "prefill_ratio": 0.4, "decode_ratio": 1.5,
    }  # fmt: skip
    assert [re.split("  +", line) for line in table_lines([base, row])[:-1]] == [
        ["mode", "peak", "saved", "KV cache after the prompt", "saved", "prefill", "decode", "FLOPs", "accuracy"],
        ["baseline", "1.00 GiB", "0 B", "4.00 KiB", "0 B", "1.00 (500 ms)", "1.00 (20 ms)", "1.000", "50.00%"],
        [
            "himap",
            "512.00 MiB",
            "512.00 MiB",
            "1.00 KiB",
            "3.00 KiB",
            "0.40 (200 ms)",
            "1.50 (30 ms)",
            "0.250",
            "75.00%",
        ],
    ]
    assert table_lines([base, row])[-1].endswith("baseline is 1; times are of this one run, and vary")


def test_no_figure_is_never_zero() -> None:
    """A column without figures is named below the table, a cell without one says so; nothing derived is made up."""
    himap = ModeFigures("himap", peak_bytes=None, cache_bytes=1024, out_of_memory=True)
    rows = mode_rows([ModeFigures("baseline", 2**30), himap, ModeFigures("fastv", 2**31)])

    assert table_lines(rows) == [
        "mode      peak           saved         KV cache after the prompt",
        "baseline  1.00 GiB       0 B           not measured",
        "himap     out of memory  not measured  1.00 KiB",
        "fastv     2.00 GiB       -1.00 GiB     not measured",
        "saved: bytes less than in baseline; prefill, decode and FLOPs: baseline is 1",
        "not measured here: prefill, decode, FLOPs, accuracy",
    ]
    assert all(
        rows[1].to_json()[name] is None
        for name in ("peak_bytes", "peak_saved_bytes", "cache_saved_bytes", "prefill_ratio", "decode_ratio", "accuracy")
    )


def test_without_baseline_nothing_is_compared() -> None:
    """As where baseline alone was not run."""
    (row,) = mode_rows([ModeFigures("himap", 2**30, 1, 0.5)])
    assert (row.peak_saved_bytes, row.prefill_ratio) == (None, None)
    assert table_lines([row])[:2] == [
        "mode   peak      KV cache after the prompt  prefill",
        "himap  1.00 GiB  1 B                        500 ms",
    ]


def test_a_token_s_time_is_over_the_tokens_after_the_first() -> None:
    """Answers of one token, and those whose prefill was not timed, have no part in it."""

    def answered(seconds: float, tokens: int, prefill: float | None, cache: int | None = None) -> Answered:
        return Answered("q", "A", None, None, seconds, tokens, prefill_seconds=prefill, cache_bytes=cache)

    answers = [answered(3.0, 5, 1.0, 7), answered(2.0, 1, 2.0, 9), answered(9.0, 9, None), answered(4.0, 2, 3.0)]

    figures = mode_figures("himap", answers, {"peak_bytes": 11})

    assert (figures.peak_bytes, figures.cache_bytes, figures.accuracy) == (11, 9, None)
    assert (figures.prefill_seconds, figures.decode_seconds) == (2.0, 3.0 / 5)
    nothing = mode_figures("himap", [answered(1.0, 1, 1.0)], {"peak_bytes": None})
    assert (nothing.peak_bytes, nothing.cache_bytes, nothing.decode_seconds) == (None, None, None)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_cache_is_what_a_forward_leaves(
    checkpoint: Checkpoint, model: HimapLlavaForConditionalGeneration, mode: str, drop: bool
) -> None:
    """Keys and values of a real prefill, byte for byte, with an image and without."""
    set_mode(model, mode, **({"custom_drop": drop} if mode.startswith("custom-") else {}))
    answerer = Answerer(checkpoint.tokenizer, model, checkpoint.image_processor)
    questions = {question.image is None: question for question in embedded_questions(20)}
    assert questions.keys() == {True, False}
    for question in questions.values():
        with torch.inference_mode():
            left = model(**answerer.inputs(question), use_cache=True).past_key_values
        n_bytes = sum(each.nbytes for layer in left.layers for each in (layer.keys, layer.values))
        lengths = answerer.prompts.lengths(question)
        assert cache_bytes(model.config.text_config, model.dtype, **lengths) == n_bytes
