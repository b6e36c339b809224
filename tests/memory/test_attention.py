"""The attention softmax stays in its budget, with either attention implementation."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from himap import HimapLlavaForConditionalGeneration
from llava.answering import Answerer
from llava.questions import Question
from tests.memory.probes import AttentionProbe
from vram import Recording, format_bytes
from vram.session import VramSession


@pytest.fixture
def longest(answerer: Answerer, model: HimapLlavaForConditionalGeneration, questions: list[Question]) -> Question:
    """The longest question with an image whose length is no size of the model's own."""
    config = model.config.text_config
    own = {config.hidden_size, config.intermediate_size, config.vocab_size, config.hidden_size // 2}
    by_length = {len(answerer.prompts.ids(question)): question for question in questions if question.image is not None}
    usable = [length for length in by_length if length not in own]
    if not usable:
        pytest.skip("no question with an image whose length can be told from the model's own sizes")
    return by_length[max(usable)]


def probed(answerer: Answerer, model: HimapLlavaForConditionalGeneration, question: Question) -> AttentionProbe:
    probe = AttentionProbe(model.model.language_model)
    with probe.watching():
        answerer.answer(question)
    assert probe.longest > 1
    return probe


def test_one_softmax_is_four_bytes_a_head_and_pair(
    answerer: Answerer,
    model: HimapLlavaForConditionalGeneration,
    longest: Question,
    mode: str,
    switched: Callable[..., None],
) -> None:
    """Eager: no softmax result is larger than one fp32 map of 4 * heads * N * N bytes, and that one is seen."""
    switched(mode)
    model.set_attn_implementation("eager")
    probe = probed(answerer, model, longest)
    budget_bytes = 4 * model.config.text_config.num_attention_heads * probe.longest**2
    assert 0 < probe.softmax_peak_bytes <= budget_bytes, (
        f"{format_bytes(probe.softmax_peak_bytes)} over {format_bytes(budget_bytes)} at N = {probe.longest}"
    )


def test_sdpa_makes_no_square_map(
    answerer: Answerer,
    model: HimapLlavaForConditionalGeneration,
    longest: Question,
    mode: str,
    switched: Callable[..., None],
) -> None:
    """SDPA, one unpadded prompt: no N x N tensor anywhere in the decoder, in any mode."""
    switched(mode)
    model.set_attn_implementation("sdpa")
    assert probed(answerer, model, longest).squares == []


def test_the_probe_sees_a_square_map(
    answerer: Answerer, model: HimapLlavaForConditionalGeneration, longest: Question, switched: Callable[..., None]
) -> None:
    """The check above can fail: under eager attention the maps are there to be seen."""
    switched("baseline")
    model.set_attn_implementation("eager")
    assert any("softmax" in square for square in probed(answerer, model, longest).squares)


def test_the_softmax_of_this_run_is_reported(
    vram: VramSession,
    answerer: Answerer,
    model: HimapLlavaForConditionalGeneration,
    longest: Question,
    mode: str,
    recording: Recording,
    switched: Callable[..., None],
) -> None:
    """The run's own attention implementation: its largest softmax result goes into the report, within the budget."""
    switched(mode)
    probe = probed(answerer, model, longest)
    vram.note(recording, softmax_peak_bytes=probe.softmax_peak_bytes)
    assert probe.softmax_peak_bytes <= 4 * model.config.text_config.num_attention_heads * probe.longest**2
