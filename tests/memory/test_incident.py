"""Both halves of the incident this suite grew from are caught by it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import himap.decoder
from himap import HimapLlavaForConditionalGeneration
from himap.settings import active_settings
from llava.answering import Answerer
from llava.questions import Question
from tests.memory.probes import assert_tokens_cost, cache_bytes_per_token, entered_code
from vram import PeakExceeded, Recording, assert_peak, replay
from vram.meters import default_meter
from vram.session import VramSession


def test_a_stale_flag_is_caught_by_the_branch_test(
    answerer: Answerer,
    model: HimapLlavaForConditionalGeneration,
    with_image: Question,
    switched: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A decoder that copied its flags when they were on keeps pruning in "baseline": the spy sees it."""
    switched("himap")
    copied = active_settings(model.config.text_config)
    switched("baseline")
    monkeypatch.setattr(himap.decoder, "active_settings", lambda _config: copied)
    # The config says baseline, so the cache would be used, and the mask not handed on: do what the old script did.
    ids = answerer.inputs(with_image)
    mask = ids["input_ids"] == model.config.image_token_id
    with entered_code() as entered:
        model(**ids, image_mask=mask, use_cache=False)
    assert "decoder.py:_selective_forward" in entered


@pytest.fixture
def keeping(
    answerer: Answerer,
    vram: VramSession,
    questions: list[Question],
    switched: Callable[..., None],
    recordings: Callable[[str], Recording],
) -> Recording:
    """The old loop: no cache, every layer's attention of every token kept until the next answer."""
    recordings("baseline")  # before what is planted here is alive
    switched("baseline")
    parts = (answerer.tokenizer, answerer.model, answerer.image_processor)
    keeper = Answerer(*parts, **answerer.lengths, keep_attentions=True)
    asked = [question for question in questions if question.image is not None][:2] or questions[:2]
    # Not the fixture's replay: what is planted here does not belong in the report.
    return replay(keeper.answer, asked, laps=3, meters=[default_meter(vram.device)], name="keeping attentions")


def test_kept_attentions_are_caught_by_the_token_test(
    keeping: Recording, model: HimapLlavaForConditionalGeneration
) -> None:
    """Every token adds layers * heads * N * N: the check of one token's cost fails and says the bytes."""
    cache_bytes = cache_bytes_per_token(model.config.text_config, model.dtype)
    with pytest.raises(AssertionError, match="token 2 of sample 0, lap 0, adds"):
        assert_tokens_cost(keeping, cache_bytes)


def test_kept_attentions_are_caught_by_the_peak_budget(
    keeping: Recording, recordings: Callable[[str], Recording]
) -> None:
    """The peak of all samples in baseline is not enough for two answers whose attentions are kept."""
    with pytest.raises(PeakExceeded):
        assert_peak(keeping, recordings("baseline").peak_bytes())
