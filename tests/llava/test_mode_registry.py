"""A mode that is registered is everywhere: what one more file and one more line bring."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from himap import HimapLlavaForConditionalGeneration
from llava.argument_types import whole
from llava.errors import BadInput
from llava.eval import custom_selection_inference, eval_scivqa, forecast_memory
from llava.modes import MODES, Choice, Mode, Option, mode_flags, register, set_mode
from vram.gating.outcome import Ended, outcome
from vram.summary import RecordingSummary, RunSummary

ROOT = Path(__file__).parents[2]


@pytest.fixture
def stand_in() -> Iterator[Mode]:
    """A mode that sets its flags, which nothing reads: it answers as baseline does."""
    mode = Mode(
        name="stand-in",
        technique="STAND-IN TECHNIQUE",
        defaults=lambda shape: {"use_stand_in": True, "stand_in_rank": shape.image_tokens // 4, "stand_in_way": "a"},
        switch="use_stand_in",
        fixed=("stand_in_way",),
        programs={"eval-scivqa": Choice("--use-stand-in", "prune with the stand-in")},
        options=(Option("--stand-in-rank", "stand_in_rank", whole(1), "image tokens kept (default: a quarter)"),),
    )
    register(mode)
    yield mode
    del MODES[mode.name]


def test_a_name_is_registered_once(stand_in: Mode) -> None:
    """A second mode of a name would take the first one's place in silence."""
    with pytest.raises(ValueError, match="got a second stand-in"):
        register(stand_in)


@pytest.mark.usefixtures("stand_in")
def test_a_model_is_switched_to_it_and_back(model: HimapLlavaForConditionalGeneration) -> None:
    """Its switch goes on with its flags, and off with any other mode; what makes the mode can't be set."""
    set_mode(model, "stand-in", stand_in_rank=3)
    assert (model.config.use_stand_in, model.config.stand_in_rank) == (True, 3)
    set_mode(model, "himap")
    assert model.config.use_stand_in is False
    for flag in ("use_stand_in", "stand_in_way"):
        with pytest.raises(BadInput, match=r"must be one of \(stand_in_rank\)"):
            mode_flags(model.config, "stand-in", **{flag: "b"})


@pytest.mark.usefixtures("stand_in")
def test_its_program_offers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its switch and options work from the command line to the results; the other program knows neither."""
    monkeypatch.chdir(tmp_path)
    assert eval_scivqa.main(["--use-stand-in", "--stand-in-rank", "5", "--num-samples", "1"]) == 0
    assert capsys.readouterr().out.startswith("STAND-IN TECHNIQUE WILL BE USED")
    result = json.loads((tmp_path / "eval-scivqa-stand-in.json").read_text())
    assert result["mode"] == "stand-in"
    assert result["model_config"]["stand_in_rank"] == 5

    assert custom_selection_inference.main(["--use-stand-in"]) == 2
    assert "unrecognized arguments: --use-stand-in" in capsys.readouterr().err


@pytest.mark.usefixtures("stand_in")
def test_two_modes_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Two switches leave nothing to choose by."""
    assert eval_scivqa.main(["--use-stand-in", "--use-hmap-v"]) == 2
    assert "one mode must be chosen, got --use-hmap-v and --use-stand-in" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:simulated CUDA is tested with torch")
@pytest.mark.usefixtures("stand_in")
def test_its_memory_is_forecast(capsys: pytest.CaptureFixture[str]) -> None:
    """It is one of the modes to forecast; as it may drop tokens, no growth by the token is promised."""
    assert forecast_memory.main(["--model", "tiny", "--mode", "stand-in", "--answers", "2", "--card", "8GiB"]) == 0
    out = capsys.readouterr().out
    assert "tiny, stand-in, float16" in out
    assert "a token adds" not in out


@pytest.mark.usefixtures("stand_in")
def test_the_memory_suite_runs_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a parameter of the tests that take all modes, and of those that take all that prune."""
    for name in [name for name in sys.modules if name.startswith("tests.memory")]:
        monkeypatch.delitem(sys.modules, name)
    assert pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / "memory")]) == 0
    out = capsys.readouterr().out
    assert "test_the_spy_sees_the_other_modes[stand-in]" in out
    assert out.count("[stand-in]") > 5


@pytest.mark.usefixtures("stand_in")
def test_the_suite_s_outcome_waits_for_it() -> None:
    """A run without a decision on it is inconclusive, whatever the others are."""
    decided = [RecordingSummary(mode, laps=5, samples=2, verdict="stable") for mode in MODES if mode != "stand-in"]
    ended = Ended(0, RunSummary(recordings=decided), required=tuple(MODES))
    assert outcome(ended) == (3, "inconclusive: no decision on stand-in")
