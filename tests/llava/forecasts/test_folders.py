"""Models that are forecast by their folder's config: which are read, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava.eval.forecast_memory import main
from llava.forecast_config import config_of
from llava.presets import tiny_folder
from llava.shapes import SHAPES
from tests.llava.forecasts.conftest import TINY, forecast, with_layers, write_config, write_original_7b
from vram.simulated.context import TOKEN

pytestmark = pytest.mark.filterwarnings("ignore:simulated CUDA is tested with torch")


def test_an_original_folder_needs_a_config_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives the preset's figures, as its tower is the known CLIP; both have 2 layers here, soon simulated."""
    monkeypatch.setitem(SHAPES, "7b", with_layers(SHAPES["7b"], 2, 2))
    figures = [
        forecast(tmp_path, "--model", model, "--answers", "1", "--card", "24GiB")["samples"][0]["peak_bytes"]
        for model in (write_original_7b(tmp_path / "llava-v1.5-7b", num_hidden_layers=2), "7b")
    ]
    assert figures[0] == figures[1]


@pytest.mark.full
def test_a_folder_needs_a_config_only(tmp_path: Path, plain: dict[str, Any]) -> None:
    """No weights: they have no bytes here anyway. On every push the folder of
    `test_assumed_tokens_are_neither_the_image_nor_an_end` has a config only, and the same figures.
    """
    model = write_config(tmp_path / "model")
    assert forecast(tmp_path, "--model", model)["samples"] == plain["samples"]


def test_a_quantised_config_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights would be counted as if they were not."""
    model = write_config(tmp_path / "model", {"quantization_config": {"quant_method": "awq"}})
    assert main([*TINY, "--model", model]) == 2
    assert "must have no quantization_config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("text_config", "num_hidden_layers", -1),
        ("text_config", "num_hidden_layers", 0),
        ("text_config", "hidden_size", -64),
        ("text_config", "intermediate_size", 0),
        ("text_config", "head_dim", 0),
        ("text_config", "pad_token_id", 10**6),
        ("text_config", "rope_type", "nope"),
        ("text_config", "rope_type", "longrope"),
        ("vision_config", "num_hidden_layers", 0),
        ("vision_config", "intermediate_size", 0),
        ("vision_config", "num_channels", 0),
        ("text_config", "num_key_value_heads", 3),
        ("text_config", "hidden_act", "nope"),
        ("vision_config", "patch_size", 0),
        ("vision_config", "image_size", 1),
        ("", "vision_feature_layer", -9),
        ("", "vision_feature_layer", []),
        ("", "projector_hidden_act", "nope"),
        ("", "image_token_index", 10**6),
        ("", "image_token_index", -1),
    ],
)
def test_a_config_that_makes_no_model_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, name: str, value: object
) -> None:
    """Exit code 2, with the config's own name of what is wrong and the folder; no traceback."""
    raw = json.loads((tiny_folder() / "config.json").read_text())
    if name == "rope_type":
        factors = {"short_factor": [1] * 8, "long_factor": [1] * 8, "factor": 2.0}
        raw[part]["rope_parameters"] = {"rope_type": value, "rope_theta": 10000.0, **factors}
    else:
        (raw[part] if part else raw)[name] = value
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    assert main([*TINY, "--model", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert ("activations" if name.endswith("_act") else name) in err
    assert str(folder)[-40:] in err


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vocab_size", 10**12, "must have at most 1,099,511,627,776 parameters, got "),
        ("hidden_size", 2**62, "must have a whole and fitting config.json"),
    ],
)
def test_a_model_beyond_every_card_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: int, message: str
) -> None:
    """Nor does torch's own out of memory, or its overflow, end in a traceback: exit code 2."""
    assert main([*TINY, "--model", write_config(tmp_path / "model", **{name: value})]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_assumed_tokens_are_neither_the_image_nor_an_end(tmp_path: Path, plain: dict[str, Any]) -> None:
    """A config whose ids are those assumed gives the same figures as any other."""
    model = write_config(tmp_path / "model", {"image_token_index": 1}, eos_token_id=TOKEN)
    assert forecast(tmp_path, "--model", model)["samples"] == plain["samples"]


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_are_counted_once(tied: bool) -> None:
    """As many parameters as transformers' own model has."""
    import copy

    import torch
    from transformers import LlavaForConditionalGeneration

    from llava.checkpoint import empty_model

    config = config_of("tiny")
    config.tie_word_embeddings = tied
    with torch.device("meta"):
        theirs = LlavaForConditionalGeneration(copy.deepcopy(config))
    ours = empty_model(config, torch.device("meta"))
    assert sum(each.nbytes for each in ours.parameters()) == sum(each.nbytes for each in theirs.parameters())


@pytest.mark.full
def test_a_hub_id_is_known_by_its_config(
    monkeypatch: pytest.MonkeyPatch, plain: dict[str, Any], tmp_path: Path
) -> None:
    """As elsewhere; the weights are not fetched. On every push a folder is known so, and test_original fetches."""
    fetched = []

    def snapshot(name: str, patterns: list[str], *, local_files_only: bool) -> Path:
        fetched.append((name, tuple(patterns)))
        return Path(write_config(tmp_path / f"hub{len(fetched)}"))

    monkeypatch.setattr("llava.folders._snapshot", snapshot)
    assert forecast(tmp_path, "--model-path", "owner/name")["samples"] == plain["samples"]
    assert set(fetched) == {("owner/name", ("*.json", "tokenizer.model"))}
