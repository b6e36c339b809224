"""Does a mode save memory at all, and how much? Each beside baseline, question by question."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from himap import HimapLlavaForConditionalGeneration
from llava.answering import Answer, Answerer
from llava.eval.results import average_times
from llava.modes import MODES, set_mode
from llava.prompt_figures import prompt_figures
from llava.questions import Question
from vram import Recording, assert_ratio, replay
from vram.meters import default_meter
from vram.replaying.out_of_memory import is_out_of_memory
from vram.session import VramSession

CUSTOM = [mode for mode in MODES if mode.startswith("custom-")]
_DROPPED = 3  # questions replayed with custom_drop
_TIMED = 3  # questions answered once more in each mode: while memory is read, times are longer


def with_images(questions: list[Question]) -> list[int]:
    """Numbers of the questions that have something to prune."""
    return [number for number, question in enumerate(questions) if question.image is not None] or pytest.skip(
        "none of the questions has an image"
    )


def model_bytes(recording: Recording) -> int:
    """Memory alive before the first sample: the weights, which no mode saves."""
    return recording.before["requested"]


@pytest.fixture
def lengths(answerer: Answerer, questions: list[Question]) -> list[int]:
    """Tokens of each prompt, those of its image included."""
    return [len(answerer.prompts.ids(question)) for question in questions]


@pytest.mark.parametrize("mode", [mode.name for mode in MODES.values() if mode.prunes and mode.name not in CUSTOM])
def test_pruning_saves_memory(
    vram: VramSession, recordings: Callable[[str], Recording], questions: list[Question], lengths: list[int], mode: str
) -> None:
    """Above the weights: each question with an image needs less than in baseline; one without, its image mask more."""
    pruned, baseline = recordings(mode), recordings("baseline")
    weights, some = model_bytes(baseline), with_images(questions)
    vram.assert_ratio(pruned, baseline, at_most=1.001, besides_bytes=weights, lengths=lengths)
    vram.assert_ratio(pruned, baseline, at_most=0.99, besides_bytes=weights, lengths=lengths, samples=some)


@pytest.mark.parametrize("mode", CUSTOM)
def test_custom_selection_filled_with_zeros_saves_nothing(
    vram: VramSession, recordings: Callable[[str], Recording], questions: list[Question], mode: str
) -> None:
    """The slots of what was not kept stay, by design, as zeros. It needs what baseline needs, to a hundredth."""
    custom, baseline = recordings(mode), recordings("baseline")
    some, weights = with_images(questions), model_bytes(baseline)
    vram.assert_ratio(custom, baseline, at_most=1.01, besides_bytes=weights, samples=some)
    assert_ratio(baseline, custom, at_most=1.01, besides_bytes=weights, samples=some)


@pytest.fixture(scope="module")
def dropped(
    vram: VramSession,
    model: HimapLlavaForConditionalGeneration,
    step: Callable[[Question], object],
    questions: list[Question],
) -> Callable[..., Recording]:
    """Peaks of a mode over a few questions with images, each answered once; none that belongs in the report."""
    some = [questions[number] for number in with_images(questions)[:_DROPPED]]

    def recording_of(mode: str, **flags: bool) -> Recording:
        set_mode(model, mode, **flags)
        try:
            return replay(step, some, laps=1, meters=[default_meter(vram.device)], name=mode)
        finally:
            set_mode(model, "baseline")

    return recording_of


@pytest.fixture(scope="module")
def undropped(dropped: Callable[..., Recording]) -> Recording:
    return dropped("baseline")


@pytest.mark.parametrize("mode", CUSTOM)
def test_custom_selection_saves_memory_where_it_drops(
    vram: VramSession, dropped: Callable[..., Recording], undropped: Recording, mode: str
) -> None:
    """With `custom_drop` the slots go, and every question with an image needs less than in baseline."""
    custom = dropped(mode, custom_drop=True)
    vram.assert_ratio(custom, undropped, at_most=0.99, besides_bytes=model_bytes(undropped))


@pytest.fixture(scope="module")
def times(
    model: HimapLlavaForConditionalGeneration, answerer: Answerer, questions: list[Question]
) -> dict[str, tuple[float | None, float | None]]:
    """Seconds of a prefill and of a token in each mode. Modes take turns, so that a busy machine slows all alike."""
    answers: dict[str, list[Answer]] = {mode: [] for mode in MODES}
    for question in sorted(questions, key=lambda question: question.image is None)[:_TIMED]:
        for mode, given in answers.items():
            set_mode(model, mode)
            try:
                given.append(answerer.answer(question))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
    set_mode(model, "baseline")
    return {mode: average_times(given) for mode, given in answers.items()}


def test_the_figures_of_the_table_of_savings_are_reported(
    vram: VramSession,
    answerer: Answerer,
    questions: list[Question],
    recording: Recording,
    mode: str,
    switched: Callable[..., None],
    times: dict[str, tuple[float | None, float | None]],
) -> None:
    """KV cache and FLOPs of the prompts, times of a few answers. Only custom selection may add FLOPs, a hundredth."""
    switched(mode)
    lengths = [answerer.prompts.lengths(question) for question in questions]
    cache_bytes, flops_ratio = prompt_figures(answerer.model.config.text_config, answerer.model.dtype, lengths)
    prefill_seconds, decode_seconds = times[mode]
    notes = {"cache_bytes": cache_bytes, "flops_ratio": flops_ratio}
    vram.note(recording, **notes, prefill_seconds=prefill_seconds, decode_seconds=decode_seconds)
    assert 0 < flops_ratio <= (1.01 if mode in CUSTOM else 1)
