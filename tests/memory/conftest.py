"""Each mode is replayed once per session, on the session's one model, and judged by many tests."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from himap import HimapLlavaForConditionalGeneration
from llava.answering import Answerer
from llava.modes import MODES, set_mode
from llava.questions import Question
from tests.memory.savings import savings
from vram import Budget, Recording
from vram.replaying.collector import cheap_collections
from vram.session import VramSession
from vram.summary.reader import read_run
from vram.text import terminal_columns

BUDGETS = Path(__file__).parents[2] / "ci" / "budgets"


@pytest.fixture(scope="session")
def model(answerer: Answerer) -> Iterator[HimapLlavaForConditionalGeneration]:
    with cheap_collections():  # else each measurement looks through all that is imported, some times over
        yield answerer.model


@pytest.fixture(scope="session")
def with_image(questions: list[Question]) -> Question:
    """A question with an image: without one there is nothing to prune."""
    found = next((question for question in questions if question.image is not None), None)
    return found or pytest.skip("none of the questions has an image")


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def step(answerer: Answerer) -> Callable[[Question], object]:
    """One sample, answered the same way each time: custom selection draws its first index from a fixed seed."""

    def answer(question: Question) -> None:
        torch.manual_seed(0)
        answerer.answer(question)

    return answer


@pytest.fixture(scope="session")
def facts(
    pytestconfig: pytest.Config, model: HimapLlavaForConditionalGeneration, questions: list[Question]
) -> dict[str, str]:
    """Facts that must be equal, beside the machine, for two runs to be compared."""
    asked: Path | None = pytestconfig.getoption("--question-file")
    return {
        "model": Path(pytestconfig.getoption("--model-path")).name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": str(model.config.text_config._attn_implementation),
        "transformers": _minor(importlib.metadata.version("transformers")),
        "samples": f"{len(questions)} of {'embedded' if asked is None else asked.name}",
    }


@pytest.fixture(scope="session")
def recordings(
    vram: VramSession,
    model: HimapLlavaForConditionalGeneration,
    step: Callable[[Question], object],
    questions: list[Question],
    facts: dict[str, str],
) -> Callable[[str], Recording]:
    """The recording of a mode, made when first asked for. A replay that failed fails every test that needs it."""
    made: dict[str, Recording | AssertionError] = {}

    def recording_of(mode: str) -> Recording:
        def step_in_mode(question: Question) -> None:
            # Not around the replay: a failure is explained by running the step again, later.
            set_mode(model, mode)
            try:
                step(question)
            finally:
                set_mode(model, "baseline")

        if mode not in made:
            try:
                made[mode] = vram.replay(step_in_mode, questions, name=mode, facts=facts)
            except AssertionError as error:
                made[mode] = error
        result = made[mode]
        if isinstance(result, AssertionError):
            raise result.with_traceback(None)
        return result

    return recording_of


@pytest.fixture
def recording(recordings: Callable[[str], Recording], mode: str) -> Recording:
    return recordings(mode)


@pytest.fixture
def switched(model: HimapLlavaForConditionalGeneration) -> Iterator[Callable[..., None]]:
    """`set_mode` on the session's model; the test leaves it as it found it, in baseline."""
    attention = model.config.text_config._attn_implementation
    yield lambda mode, **flags: set_mode(model, mode, **flags)
    set_mode(model, "baseline")
    model.set_attn_implementation(attention)


@pytest.fixture(scope="session")
def budget_of(pytestconfig: pytest.Config, vram: VramSession, facts: dict[str, str]) -> Callable[[str], Budget]:
    """The peak budget of a mode, for exactly this model, device, versions and list of samples."""
    name = Path(pytestconfig.getoption("--model-path")).name
    device = torch.device(vram.device)
    key = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        **{fact: facts[fact] for fact in ("dtype", "attention")},
        "torch": _minor(torch.__version__),
        **{fact: facts[fact] for fact in ("transformers", "samples")},
    }
    return lambda mode: vram.budget(BUDGETS / f"{name}.toml", **key, mode=mode)


def _minor(version: Any) -> str:
    return ".".join(str(version).split(".")[:2])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what each mode saves, from the report that this session has written."""
    report = config.getoption("--vram-report")
    if report is not None and Path(report).is_file():
        for line in savings(read_run(Path(report)), terminal_columns(terminalreporter.isatty)):
            terminalreporter.write_line(line)
