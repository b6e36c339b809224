"""One tiny model for the session, always handed out in baseline; question files to write and break."""

from __future__ import annotations

import gc
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from himap import HimapLlavaForConditionalGeneration
from llava.builder import Checkpoint, open_checkpoint
from llava.modes import set_mode
from llava.placement import placed
from tests.llava.forked import serving
from vram.replaying.collector import cheap_collections

GOLDEN = Path(__file__).parent / "golden" / "conversation.json"


@pytest.fixture(scope="package", autouse=True)
def _hidden() -> Iterator[None]:
    """Hide what was imported from the collector: each measurement would look through a million objects again."""
    with cheap_collections():
        yield


@pytest.fixture(scope="module", autouse=True)
def _small_heap(_hidden: None) -> None:
    """Hide what earlier modules of tests have left: libraries and compiled code, 300,000 objects in the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return open_checkpoint("tiny")


@pytest.fixture(scope="session")
def _loaded(checkpoint: Checkpoint) -> HimapLlavaForConditionalGeneration:
    return checkpoint.load_model(placed())


@pytest.fixture
def model(_loaded: HimapLlavaForConditionalGeneration) -> Iterator[HimapLlavaForConditionalGeneration]:
    set_mode(_loaded, "baseline")
    yield _loaded
    set_mode(_loaded, "baseline")


@pytest.fixture(scope="session")
def server() -> Iterator[socket.socket]:
    """Where programs are forked from (`tests.llava.forked`)."""
    with serving() as connection:
        yield connection


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be broken."""
    return shutil.copytree(checkpoint.folder, tmp_path / "checkpoint")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """An image folder with one good picture, `good.png`."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (40, 30), (200, 30, 60)).save(folder / "good.png")
    return folder


def a_record(**changes: Any) -> dict[str, Any]:
    """A good text-only record with `changes`; a change to `...` takes the key out."""
    record: dict[str, Any] = {
        "id": "7",
        "conversations": [{"from": "human", "value": "Which?\nA. one\nB. two"}, {"from": "gpt", "value": "A"}],
    } | changes
    return {key: value for key, value in record.items() if value is not ...}


@pytest.fixture
def write_questions(tmp_path: Path) -> Callable[..., Path]:
    """Writes records (or any JSON, or raw bytes) to a question file."""

    def write(content: Any) -> Path:
        path = tmp_path / "questions.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write
