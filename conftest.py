"""This project's options and session fixtures: one model and one list of samples for the whole session."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from llava.answering import Answerer
    from llava.questions import Question
    from vram.session import VramSession

pytest_plugins = ["pytester"]

gc.disable()  # until all is imported: the collector would look through half a million objects again and again

_SAMPLES = 20  # 5 laps of them are 100 runs
_NEW_TOKENS = 8  # always so many, for byte-exact figures


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--full`, and the options that choose the model and questions of tests/memory."""
    parser.getgroup("general").addoption(
        "--full", action="store_true", default=False, help="everything: whole evidence, whole rehearsal, 20 zoo runs"
    )
    group = parser.getgroup("himap-vram", "model and questions of tests/memory")
    group.addoption("--model-path", default="tiny", help="LLaVA folder, hub id or preset (default tiny)")
    group.addoption("--question-file", type=Path, help="ScienceQA questions (default: embedded ones)")
    group.addoption("--image-folder", type=Path, help="folder of the questions' images")
    group.addoption("--attn", default="sdpa", help="attention implementation (default sdpa)")
    group.addoption(
        "--simulated", choices=("7b", "13b"), default="7b", help="what is simulated beside it, with no GPU (default 7b)"
    )
    group.addoption("--dtype", help="float32, float16 or bfloat16 (default: by device)")


@pytest.hookimpl(tryfirst=True)  # before anything sorts a test's cases
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what is marked `full`, and of each test marked `share` all but each n-th case, without `--full`."""
    if not config.getoption("--full"):
        numbers: dict[str, Iterator[int]] = defaultdict(itertools.count)
        every = [item for item in items if _is_for_full(item, numbers)]
        config.hook.pytest_deselected(items=every)
        left = set(every)
        items[:] = [item for item in items if item not in left]


def _is_for_full(item: pytest.Item, numbers: dict[str, Iterator[int]]) -> bool:
    """Whether it runs with `--full` alone. `numbers` counts the cases of each test."""
    if item.get_closest_marker("full"):
        return True
    share = item.get_closest_marker("share")
    test, _, _ = item.nodeid.partition("[")
    return share is not None and next(numbers[test]) % share.args[0] > 0


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Enable the collector after the imports. They are not hidden from it: tests' modules make tensors that count."""
    try:
        return (yield)
    finally:
        gc.collect()
        gc.enable()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Refuse bad questions in one line, before a model is loaded."""
    config = session.config
    _check_source(os.environ.get("VRAM_TESTED"))
    if config.getoption("--question-file") is not None or config.getoption("--image-folder") is not None:
        from llava.errors import BadInput

        try:
            _questions(config)
        except BadInput as error:
            raise pytest.UsageError(str(error)) from None


def _check_source(folder: str | None) -> None:
    """Raise a usage error where the packages are not those in `folder`: the built wheel is meant, not the checkout."""
    for name in ("himap", "llava", "vram") if folder else ():
        spec = importlib.util.find_spec(name)
        if spec is None or not Path(str(spec.origin)).is_relative_to(str(folder)):
            where = spec.origin if spec is not None else "nowhere"
            raise pytest.UsageError(f"VRAM_TESTED: {name} must come from {folder}, got it from {where}")


def _questions(config: pytest.Config) -> list[Question]:
    from llava.errors import BadInput
    from llava.questions import embedded_questions, load_questions

    count = int(config.getoption("--vram-samples") or config.getini("vram_samples") or _SAMPLES)
    file, folder = config.getoption("--question-file"), config.getoption("--image-folder")
    if file is None:
        if folder is not None:
            raise BadInput(f"--image-folder needs --question-file, got only {folder}")
        return embedded_questions(count)
    return load_questions(file, folder)[:count]


@pytest.fixture(scope="session")
def questions(pytestconfig: pytest.Config) -> list[Question]:
    """The samples of one lap."""
    return _questions(pytestconfig)


@pytest.fixture(scope="session")
def others_bytes(vram: VramSession) -> int:
    """Bytes of other tests' tensors before the session's model is loaded: no part of its budgets."""
    with vram.measure() as measured:
        return int(measured.before_bytes)


@pytest.fixture(scope="session")
def answerer(pytestconfig: pytest.Config, vram: VramSession, questions: list[Question], others_bytes: int) -> Answerer:
    """The session's one model, with what turns a question into an answer of a fixed length."""
    from llava.errors import BadInput

    try:
        return _answerer(pytestconfig, vram.device, questions)
    except BadInput as error:
        pytest.exit(str(error), returncode=pytest.ExitCode.USAGE_ERROR)


def _answerer(config: pytest.Config, device: str, questions: list[Question]) -> Answerer:
    from llava.answering import Answerer
    from llava.builder import load_pretrained_model

    tokenizer, model, image_processor, _ = load_pretrained_model(
        config.getoption("--model-path"),
        device=device,
        dtype=config.getoption("--dtype"),
        attn_implementation=config.getoption("--attn"),
    )
    answerer = Answerer(tokenizer, model, image_processor, max_new_tokens=_NEW_TOKENS, min_new_tokens=_NEW_TOKENS)
    for question in questions:
        answerer.prompts.check(question)
    return answerer
