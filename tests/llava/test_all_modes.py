"""`--mode all`: the same questions in every mode on one model, each mode's results, and the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from himap import HimapLlavaForConditionalGeneration
from llava.answering import Answer, Answerer
from llava.builder import Checkpoint
from llava.eval import custom_selection_inference, eval_scivqa
from llava.modes import MODES
from llava.questions import Question

EVAL, CUSTOM = eval_scivqa.main, custom_selection_inference.main
SHORT = ["--max-new-tokens", "3"]  # each operation of every token is followed
ANSWER = Answerer.answer
Main = Callable[[list[str]], int]


@pytest.fixture(autouse=True)
def loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: HimapLlavaForConditionalGeneration) -> list[str]:
    """Grows by one each time that weights are loaded; the model is the session's."""
    loaded: list[str] = []
    monkeypatch.setattr(Checkpoint, "load_model", lambda *args: loaded.append("") or model)
    monkeypatch.chdir(tmp_path)
    return loaded


def _read(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(Path(name).read_text())
    return read


def _mode_of(answerer: Answerer) -> str:
    on = [mode.name for mode in MODES.values() if mode.prunes and getattr(answerer.model.config, mode.switch)]
    return next(
        (name for name in on if not name.startswith("custom") or answerer.model.config.custom_selection_method in name),
        "baseline",
    )


def _fail(monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException, after: int = 0) -> None:
    """Answering in mode `failing` ends with `error` after so many answers; warm-ups are answered."""
    answered: list[str] = []

    def answer(self: Answerer, question: Question) -> Answer:
        if _mode_of(self) == failing and self.lengths["max_new_tokens"] != 2:
            answered.append(question.id)
            if len(answered) > after:
                raise error
        return ANSWER(self, question)

    monkeypatch.setattr(Answerer, "answer", answer)


def _timeless(result: dict[str, Any]) -> dict[str, Any]:
    for part in (result, *result["answers"]):
        for time in ("seconds", "prefill_seconds", "preparation_seconds", "avg_latency", "avg_preparation", "memory"):
            part.pop(time, None)
    return result


@pytest.mark.parametrize(
    ("main", "name"),
    [(EVAL, "eval-scivqa"), pytest.param(CUSTOM, "custom-selection-inference", marks=pytest.mark.full)],
)
def test_all_modes_are_one_command(
    main: Main, name: str, loads: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights are loaded once, each mode's file has its complete results, and the table all modes' figures."""
    assert main(["--mode", "all", "--num-samples", "2", *SHORT]) == 0

    printed = capsys.readouterr().out.splitlines()
    assert len(loads) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f"{name}-{mode}.json" for mode in (*MODES, "all"))
    table = _read(f"{name}-all.json")
    assert (table["schema"], table["complete"], table["mode"], table["questions"]["count"]) == (1, True, "all", 2)
    assert [row["mode"] for row in table["modes"]] == [*MODES]
    baseline = table["modes"][0]
    for row in table["modes"]:
        result = _read(table["results"][row["mode"]])
        assert (result["complete"], result["mode"], len(result["answers"])) == (True, row["mode"], 2)
        assert row["peak_bytes"] == result["memory"]["peak_bytes"]
        assert row["peak_saved_bytes"] == baseline["peak_bytes"] - row["peak_bytes"]
        assert (row["accuracy"], row["flops_ratio"]) == (result["accuracy"], result["flops_ratio"])
        assert row["cache_bytes"] == max(answer["cache_bytes"] for answer in result["answers"])
        assert row["prefill_ratio"] == row["prefill_seconds"] / baseline["prefill_seconds"]
        assert row["decode_ratio"] == row["decode_seconds"] / baseline["decode_seconds"]
        assert all(0 < answer["prefill_seconds"] < answer["seconds"] for answer in result["answers"])
    saved = {row["mode"]: row["cache_saved_bytes"] for row in table["modes"]}
    assert saved["himap"] > saved["fastv"] > 0 == saved["baseline"]
    at = next(at for at, line in enumerate(printed) if line.startswith("mode  "))
    assert [line.split()[0] for line in printed[at + 1 : at + 1 + len(MODES)]] == [*MODES]
    assert printed[-1] == f"Table: {tmp_path / name}-all.json"


def test_a_mode_among_all_is_the_mode_alone() -> None:
    """Answers, settings and draws are those of a run in that mode, which the warm-up does not change."""
    options, kept = ["--num-samples", "2", *SHORT], ["--custom-kept-tokens", "3"]
    assert CUSTOM(["--mode", "all", "--output-file", "a.json", *options, *kept]) == 0
    for mode, own in {"himap": [], "custom-fps": kept}.items():
        assert CUSTOM(["--mode", mode, "--output-file", "one.json", *options, *own]) == 0
        assert _timeless(_read(f"a-{mode}.json")) == _timeless(_read("one.json"))
        assert _read("a.json")["results"][mode] == f"a-{mode}.json"


def test_a_mode_that_runs_out_of_memory_has_its_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others go on; the table is incomplete, beside a complete one, and the exit code says so."""
    argv = ["--mode", "all", "--num-samples", "2", "--output-file", "a.json", *SHORT]
    assert EVAL([*argv, "--num-samples", "1", "--max-new-tokens", "1"]) == 0
    complete = Path("a.json").read_bytes()
    _fail(monkeypatch, "baseline", torch.OutOfMemoryError("full"), after=1)
    capsys.readouterr()

    assert EVAL(argv) == 1

    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == "eval-scivqa: error: out of memory: in mode baseline; the others have answered"
    assert "Out of memory in mode baseline; 1 of 2 answers are in " in out
    assert Path("a.json").read_bytes() == complete
    table = _read("a.partial.json")
    assert table["complete"] is False
    rows = {row["mode"]: row for row in table["modes"]}
    assert rows["baseline"]["out_of_memory"] is True
    assert rows["baseline"]["peak_bytes"] is None
    assert rows["himap"]["peak_bytes"] > 0
    assert rows["himap"]["peak_saved_bytes"] is rows["himap"]["prefill_ratio"] is None


def test_an_interrupted_run_is_resumed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C writes no table; --resume answers what is missing, and the table has all."""
    argv = ["--mode", "all", "--num-samples", "3", "--output-file", "a.json", *SHORT]
    with monkeypatch.context() as patched:
        _fail(patched, "himap", KeyboardInterrupt(), after=1)
        assert EVAL(argv) == 130
    assert "1 of 3 answers are in " in capsys.readouterr().err
    assert not Path("a.json").exists()
    assert _read("a-baseline.json")["complete"]
    _fail(monkeypatch, "baseline", AssertionError("answered again"))

    assert EVAL([*argv, "--resume"]) == 0

    assert "Resumed: 3 of 3 answers are in a-baseline.json" in capsys.readouterr().out
    table = _read("a.json")
    assert table["complete"]
    assert all(row["peak_bytes"] and row["decode_seconds"] for row in table["modes"])


def test_loading_that_fails_ends_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No mode could run: it is not tried again for each, and there is no table."""
    tries: list[str] = []

    def load(*args: object) -> None:
        tries.append("")
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(Checkpoint, "load_model", load)
    assert EVAL(["--mode", "all", "--num-samples", "1", "--output-file", "a.json"]) == 1
    assert len(tries) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a-baseline.json"]


def test_a_share_without_questions_has_no_figures(capsys: pytest.CaptureFixture[str]) -> None:
    """The reason is that nothing was answered, not that no cache is kept or that labels are missing."""
    assert EVAL(["--mode", "all", "--num-chunks", "30", "--chunk-idx", "29"]) == 0
    reason = "KV cache after the prompt, prefill, decode, FLOPs, accuracy (no question was answered)"
    assert f"not measured here: {reason}" in capsys.readouterr().out


def test_without_a_cache_there_is_no_figure_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Never 0: the column is named as not measured."""
    assert EVAL(["--mode", "all", "--num-samples", "1", "--no-cache", "--max-new-tokens", "1"]) == 0
    assert "not measured here: KV cache after the prompt (none is kept); decode" in capsys.readouterr().out
    assert {row["cache_bytes"] for row in _read("eval-scivqa-all.json")["modes"]} == {None}


@pytest.mark.parametrize(
    ("main", "argv", "line"),
    [
        (EVAL, "--mode all --use-hmap-v", "one mode must be chosen, got --mode all and --use-hmap-v"),
        (EVAL, "--mode baseline --use-fast-v", "one mode must be chosen, got --mode baseline and --use-fast-v"),
        (CUSTOM, "--mode himap --baseline", "one mode must be chosen, got --mode himap and --baseline"),
    ],
)
def test_two_choices_of_a_mode_are_refused(
    main: Main, argv: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, before anything is loaded."""
    assert main(argv.split()) == 2
    assert capsys.readouterr().err.endswith(f"error: {line}\n")


def test_the_same_mode_twice_is_one_choice() -> None:
    """A switch of the original's, and the option that names its mode."""
    assert CUSTOM(["--mode", "custom-tome", "--custom-selection-method", "tome", "--num-samples", "1", *SHORT]) == 0
    assert _read("custom-selection-inference-custom-tome.json")["mode"] == "custom-tome"
