"""Shared by tests of forecasts: cards, a small model, and a run of the program."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava.eval.forecast_memory import main
from llava.presets import tiny_folder
from llava.shapes import SHAPES, Shape
from vram.cards import CARDS, find_card

TINY = ("--model", "tiny", "--answers", "2,3", "--card", "8GiB")


@pytest.fixture(autouse=True, scope="module")
def _smallest_is_a_v100() -> Iterator[None]:
    """A smaller card that is listed one day changes nothing here."""
    listed = [card for card in CARDS if card.total_bytes >= find_card("V100-16").total_bytes]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("vram.cards.CARDS", listed)
        yield


@pytest.fixture(autouse=True, scope="module")
def _few_layers() -> Iterator[None]:
    """Tiny with 2 layers in its decoder and 2 in its tower: half the operations to simulate."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(SHAPES, "tiny", with_layers(SHAPES["tiny"], 2, 2))
        yield


def with_layers(shape: Shape, decoder: int, tower: int) -> Shape:
    return replace(
        shape,
        decoder=replace(shape.decoder, num_hidden_layers=decoder),
        tower=replace(shape.tower, num_hidden_layers=tower),
    )


def forecast(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "forecast.json"
    assert main([*TINY, *arguments, "--output-file", str(path)]) == 0
    read: dict[str, Any] = json.loads(path.read_text())
    return read


@pytest.fixture(scope="module")
def plain_printed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The forecast of tiny, and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        return forecast(tmp_path_factory.mktemp("plain")), out.getvalue()


@pytest.fixture
def plain(plain_printed: tuple[dict[str, Any], str]) -> dict[str, Any]:
    """The forecast of tiny, to compare others with."""
    return plain_printed[0]


def write_config(folder: Path, changes: dict[str, Any] | None = None, **decoder: Any) -> str:
    """Write tiny's config with `changes`, some to its decoder; returns the new folder's name."""
    raw = json.loads((tiny_folder() / "config.json").read_text()) | (changes or {})
    raw["text_config"] |= {"num_hidden_layers": SHAPES["tiny"].decoder.num_hidden_layers} | decoder
    raw["vision_config"] |= {"num_hidden_layers": SHAPES["tiny"].tower.num_hidden_layers}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    return str(folder)


@pytest.fixture
def short_context(tmp_path: Path) -> str:
    """Tiny with a context of 256 tokens, where the longest answer is soon replayed."""
    return write_config(tmp_path / "short", max_position_embeddings=256)


def write_original_7b(folder: Path, **changes: Any) -> str:
    """Write liuhaotian/llava-v1.5-7b's config.json with `changes`; returns the new folder's name."""
    config = {
        "model_type": "llava_llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "mm_hidden_size": 1024,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "torch_dtype": "float16",
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | changes))
    return str(folder)
